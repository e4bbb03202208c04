"""Shared fixtures: small bundles with random weights, exported once per session, and only when a test asks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# onnxruntime may also be imported by other packages, before this one can tell it to keep quiet.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

TINY_CONFIG = {
    "in_channels": 3,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_attention": (False, True),
    "up_attention": (True, False),
    "norm_groups": 4,
}


@pytest.fixture(scope="session")
def tiny_network() -> Any:
    """A U-Net for (3, 8, 8) with fixed random weights in every layer."""
    return random_unet()


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_network: Any) -> Path:
    """A valid bundle folder: `tiny_network` as denoiser.fp32.onnx and as torch weights, a schedule of 100 steps."""
    return write_test_bundle(tmp_path_factory.mktemp("tiny") / "bundle", tiny_network)


@pytest.fixture(scope="session")
def labelled_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny_bundle`, with three classes and so an int64 input `labels`."""
    return write_test_bundle(tmp_path_factory.mktemp("labelled") / "bundle", random_unet(num_classes=3), classes=3)


@pytest.fixture(scope="session")
def guided_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `labelled_bundle`, with a null class."""
    network = random_unet(num_classes=3, null_class=True)
    return write_test_bundle(tmp_path_factory.mktemp("guided") / "bundle", network, classes=3, null=3)


@pytest.fixture(scope="session")
def text_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on captioned shapes of two steps with a tiny network, exported with every graph."""
    from dataclasses import replace
    from functools import partial

    from ddpm_deploy.export import Options, export_run
    from ddpm_deploy.model import UNetConfig
    from ddpm_deploy.shapes.reading import teach
    from ddpm_deploy.train.api import run_trainer
    from ddpm_deploy.train.presets import PRESETS
    from ddpm_deploy.train.setup import new_run

    folder = tmp_path_factory.mktemp("text")
    reading = {"text_channels": 16, "pooled_channels": 16, "patch": 4, "attention_head_dim": 8}
    preset = replace(PRESETS["shapes"], network=UNetConfig(**{**TINY_CONFIG, **reading}), T=100)
    quick = {"steps": 2, "batch_size": 8, "checkpoint_every": 2, "sample_every": 2, "sample_count": 4, "log_every": 1}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("ddpm_deploy.train.captioned.teach", partial(teach, steps=2))
        network, data, description = new_run(folder / "run", preset, {**quick, "tensorboard": False})
    run_trainer(network, data, description, folder / "run", cpu=True)
    options = Options(targets=("onnxruntime-cpu", "tensorrt"), parity_timesteps=5)
    return export_run(folder / "run", folder / "bundle", options=options).root


@pytest.fixture(scope="session")
def plain_onnx() -> Callable[[Any, Any], bytes]:
    """A plain export of a network with a free batch: (network, inputs as TensorSpecs) -> ONNX."""
    return onnx_bytes


def random_unet(**options: Any) -> Any:
    import torch

    from ddpm_deploy.model import UNet, UNetConfig

    torch.manual_seed(0)
    network = UNet(UNetConfig(**{**TINY_CONFIG, **options})).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.2) if parameter.ndim > 1 else parameter.normal_(0.5, 0.2)
    return network


def write_test_bundle(out: Path, network: Any, classes: int | None = None, null: int | None = None) -> Path:
    from safetensors.torch import save

    from ddpm_deploy import bundle as b
    from ddpm_deploy.schedule import NoiseSchedule

    shape = (3, 8, 8)
    labels = () if classes is None else (b.Condition("labels", (), "int64", tuple("abc"[:classes]), null),)
    inputs = (
        b.TensorSpec("x", ("B", *shape), "float32"),
        b.TensorSpec("t", ("B",), "float32"),
        *(b.TensorSpec(label.name, ("B",), label.dtype) for label in labels),
    )
    outputs = (b.TensorSpec("prediction", ("B", *shape), "float32"),)
    manifest = b.Manifest(
        model=b.ModelInfo("tiny", "1", "Apache-2.0", {"weights": "random"}),
        sample_shape=shape,
        output=b.OutputAffine((127.5,), (127.5,), "8-bit"),
        prediction="eps",
        variance="small",
        schedule=NoiseSchedule.linear(100, 1e-3, 0.2),
        clip=(-1.0, 1.0),
        conditions=labels,
        defaults=b.Defaults("ddim", 10, "leading"),
        network=network.spec(),
        files=(
            b.ModelFile("denoiser.fp32.onnx", "denoiser", "fp32", "onnx", 20, inputs, outputs),
            b.ModelFile("denoiser.fp32.torch.safetensors", "denoiser", "fp32", "torch", None, inputs, outputs),
        ),
        reference=None,
    )
    weights = {
        "denoiser.fp32.onnx": onnx_bytes(network, inputs),
        "denoiser.fp32.torch.safetensors": save(network.state_dict()),
    }
    b.write_bundle(out, manifest, weights)
    return out


def onnx_bytes(network: Any, inputs: Any) -> bytes:
    """Export with a free batch; the first export of a process takes a dozen seconds, later ones a second or two."""
    import torch

    examples = tuple(
        torch.zeros(*(2 if axis == "B" else axis for axis in spec.shape), dtype=getattr(torch, spec.dtype))
        for spec in inputs
    )
    program = torch.onnx.export(
        network,
        examples,
        dynamo=True,
        external_data=False,
        verbose=False,
        input_names=[spec.name for spec in inputs],
        output_names=["prediction"],
        dynamic_shapes=tuple({0: torch.export.Dim("B")} for _ in inputs),
    )
    data: bytes = program.model_proto.SerializeToString()
    return data
