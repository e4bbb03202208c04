"""Write the golden bundle of the current format, once for every released format version.

    python tests/golden/make_golden.py tests/golden/bundle-1.0

Never write one again that is committed: later readers have to read what was written then.
"""

from __future__ import annotations

import sys

import torch

from ddpm_deploy.bundle import Condition, Defaults, OutputAffine
from ddpm_deploy.export import export_module
from ddpm_deploy.model import UNet, UNetConfig
from ddpm_deploy.schedule import NoiseSchedule

if __name__ == "__main__":
    torch.manual_seed(0)
    config = UNetConfig(
        in_channels=1, block_out_channels=(4,), layers_per_block=1, norm_groups=2, num_classes=3, null_class=True
    )
    network = UNet(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.3)
    bundle = export_module(
        network,
        sys.argv[1],
        sample_shape=(1, 4, 4),
        schedule=NoiseSchedule.linear(20, 1e-3, 0.2),
        output=OutputAffine((8.0,), (8.0,), "ink, 0 to 16"),
        clip=(-1.0, 1.0),
        conditions=(Condition("labels", (), "int64", ("zero", "one", "two"), null=3),),
        defaults=Defaults("ddpm", 4, "leading", {"variance": "large"}),
        spec=network.spec(),
        name="golden",
        model_version="1.0",
        licence="Apache-2.0",
        provenance={"weights": "random numbers"},
    )
    print(bundle.digest)
