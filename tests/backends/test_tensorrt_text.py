"""TensorRT-RTX builds every graph of a text bundle, the encoder among them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddpm_deploy.backends.tensorrt import Adapter, BuildSettings, build_engine
from ddpm_deploy.bundle import read_bundle


@pytest.mark.parametrize("role", ["denoiser", "step", "sampler", "encoder"])
def test_every_graph_of_a_text_bundle_builds(rtx: Adapter, text_bundle: Path, role: str) -> None:
    bundle = read_bundle(text_bundle)
    file = bundle.file(role, "fp32", "tensorrt")
    settings = BuildSettings(batches=(2,), rows=(1, 4, 12), state_size=(5, 5, 5))
    built = build_engine(rtx, bundle.open_bytes(file), file.inputs, settings, precision="fp32")
    (profile,) = built.profiles
    steering = {"tokens"} if role == "encoder" else {"text", "pooled"}
    assert steering <= set(profile)
    assert ("loop_output" in built.layers) == (role == "sampler")
