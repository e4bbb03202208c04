"""Export the digits model of the package once more, with int8 for CPUs: `python docs/export_digits.py OUT`.

The package carries float32 alone; `make quality` compares the precisions.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from safetensors.torch import load

from ddpm_deploy.bundle import default_bundle, read_bundle
from ddpm_deploy.export import Options
from ddpm_deploy.export.api import export_module
from ddpm_deploy.model import build_network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    bundle = read_bundle(default_bundle())
    manifest, spec = bundle.manifest, bundle.manifest.network
    assert spec is not None
    network = build_network(spec)
    network.load_state_dict(load(bundle.open_bytes(bundle.file("denoiser", "fp32", "torch"))))
    export_module(
        network.eval(),
        parser.parse_args().out,
        sample_shape=manifest.sample_shape,
        schedule=manifest.schedule,
        output=manifest.output,
        prediction=manifest.prediction,
        variance=manifest.variance,
        clip=manifest.clip,
        conditions=manifest.conditions,
        defaults=manifest.defaults,
        spec=spec,
        name=manifest.model.name,
        licence=manifest.model.licence,
        options=Options(
            targets=("onnxruntime-cpu", "openvino"),
            graphs=("denoiser",),
            precisions=("fp32", "int8"),
            parity_timesteps=100,
        ),
    )


if __name__ == "__main__":
    main()
