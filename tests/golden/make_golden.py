"""Write the golden bundle of the current format, once for every released format version.

    python tests/golden/make_golden.py tests/golden/bundle-1.0

Never write one again that is committed: later readers have to read what was written then.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch

from ddpm_deploy.bundle import Condition, Defaults, OutputAffine
from ddpm_deploy.export import export_module
from ddpm_deploy.export.encoder import Encoder
from ddpm_deploy.model import TextConfig, TextEncoder, UNet, UNetConfig
from ddpm_deploy.schedule import NoiseSchedule
from ddpm_deploy.tokenizer import Tokenizer

if __name__ == "__main__":
    torch.manual_seed(0)
    tokenizer = Tokenizer(("one", "two", "zero"), 3)
    config = UNetConfig(in_channels=1, block_out_channels=(4,), layers_per_block=1, norm_groups=2, num_classes=3)
    network = UNet(replace(config, null_class=True, text_channels=4, pooled_channels=4))
    text = TextEncoder(TextConfig(tokenizer.size, tokenizer.length, 4, 4, layers=1, heads=1))
    for parameter in (*network.parameters(), *text.parameters()):
        torch.nn.init.normal_(parameter, 0.0, 0.3)
    labels = Condition("labels", (), "int64", ("zero", "one", "two"), null=3)
    read = (Condition("text", (3, 4), "float32", null=0.0), Condition("pooled", (4,), "float32", null=0.0))
    bundle = export_module(
        network,
        sys.argv[1],
        sample_shape=(1, 4, 4),
        schedule=NoiseSchedule.linear(20, 1e-3, 0.2),
        output=OutputAffine((8.0,), (8.0,), "ink, 0 to 16"),
        clip=(-1.0, 1.0),
        conditions=(labels, *read),
        encoder=Encoder(text, (Condition("tokens", (3,), "int64"),), ("text", "pooled"), tokenizer),
        defaults=Defaults("ddpm", 4, "leading", {"variance": "large"}),
        spec=network.spec(),
        name="golden",
        model_version="1.0",
        licence="Apache-2.0",
        provenance={"weights": "random numbers"},
    )
    print(bundle.digest)
