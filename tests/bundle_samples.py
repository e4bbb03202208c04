"""A manifest with every field in use, and files to go with it; no runtime can load them, none may try."""

from __future__ import annotations

from ddpm_deploy.bundle import (
    Condition,
    DataFile,
    Defaults,
    Manifest,
    ModelFile,
    ModelInfo,
    OutputAffine,
    TensorSpec,
)
from ddpm_deploy.schedule import NoiseSchedule

INPUTS = (TensorSpec("x", ("B", 2, 4, 4), "float32"), TensorSpec("t", ("B",), "float32"))
OUTPUTS = (TensorSpec("prediction", ("B", 2, 4, 4), "float32"),)
GRAPH, WEIGHTS, REFERENCE = "denoiser.fp32.onnx", "denoiser.fp32.torch.safetensors", "reference.npz"


def sample_manifest(name: str = "toy") -> Manifest:
    return Manifest(
        model=ModelInfo(name, "1.2", "Apache-2.0", {"data": "noise", "steps": 3, "lr": 1e-3, "tags": ["a", None]}),
        sample_shape=(2, 4, 4),
        output=OutputAffine((127.5, 1.0), (127.5, 0.0), "grey level"),
        prediction="eps",
        variance="small",
        schedule=NoiseSchedule.linear(10),
        clip=(-1.0, 1.0),
        conditions=(Condition("labels", (), "int64", ("cat", "dog"), 2), Condition("text", (5,), "float32")),
        defaults=Defaults("unipc", 5, "logsnr", {"order": 2}),
        network={"kind": "unet", "config": {"widths": [8, 16]}},
        files=(
            ModelFile(GRAPH, "denoiser", "fp32", "onnx", 18, INPUTS, OUTPUTS, parity={"relative_l2": 1e-6}),
            ModelFile(WEIGHTS, "denoiser", "fp32", "torch", None, INPUTS, OUTPUTS),
        ),
        reference=DataFile(REFERENCE),
    )


def sample_files(salt: bytes = b"") -> dict[str, bytes]:
    return {GRAPH: b"graph" + salt, WEIGHTS: b"weights" * 1000 + salt, REFERENCE: b"reference" + salt}
