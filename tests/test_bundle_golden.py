"""Bundles of every released format version stay readable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ddpm_deploy.bundle import FORMAT_VERSION, read_bundle, read_onnx_manifest, to_json
from ddpm_deploy.reference import read_reference
from ddpm_deploy.sampler import Sampler
from ddpm_deploy.schedule import NoiseSchedule
from ddpm_deploy.tokenizer import Tokenizer

GOLDEN = Path(__file__).parent / "golden"
DIGESTS = {
    "1.0": "sha256:2366f584789a53330bab3ad2cdc8e3a4e5d0180b427f89de84c21cc9e7eada32",
    "1.1": "sha256:d4ed202588a9fd7ae9667ac74ecfd78c512ffb17265511ea5dd2902df68941b9",
    "1.2": "sha256:896cd0ce20ce89974b16e5d228e0468c44b07fc50847445a4099c972c2d8f6d4",
}
OTHERS = {
    "1.0": [],
    "1.1": ["sampler.fp32.onnxruntime-cpu.onnx"],
    "1.2": ["sampler.fp32.onnxruntime-cpu.onnx", "encoder.fp32.onnx"],
}
NULLS = {"1.0": None, "1.1": None, "1.2": 3}  # of the labels


@pytest.mark.parametrize("version", DIGESTS)
def test_golden_bundle_reads(version: str) -> None:
    bundle = read_bundle(GOLDEN / f"bundle-{version}", digest=DIGESTS[version])
    manifest = bundle.manifest
    assert manifest.format_version == version
    assert (manifest.model.name, manifest.model.licence) == ("golden", "Apache-2.0")
    assert (manifest.sample_shape, manifest.prediction, manifest.variance) == ((1, 4, 4), "eps", "small")
    assert manifest.schedule == NoiseSchedule.linear(20, 1e-3, 0.2)
    assert (manifest.output.scale, manifest.output.units, manifest.clip) == ((8.0,), "ink, 0 to 16", (-1.0, 1.0))
    assert manifest.conditions[0].classes == ("zero", "one", "two")
    assert manifest.conditions[0].null == NULLS[version]
    assert (manifest.defaults.solver, manifest.defaults.options) == ("ddpm", {"variance": "large"})
    assert [f.path for f in manifest.all_files] == [
        "denoiser.fp32.onnx",
        *OTHERS[version],
        "denoiser.fp32.torch.safetensors",
        "reference.npz",
    ]
    assert read_onnx_manifest(bundle.path(manifest.files[0])).files == manifest.files[:1]


def test_what_1_2_added_is_read() -> None:
    manifest = read_bundle(GOLDEN / "bundle-1.2").manifest
    assert [condition.null for condition in manifest.conditions] == [3, 0.0, 0.0]
    assert manifest.tokenizer == Tokenizer(("one", "two", "zero"), 3)


def test_current_version_is_written_as_in_its_golden_bundle() -> None:
    bundle = read_bundle(GOLDEN / f"bundle-{FORMAT_VERSION}")
    assert to_json(bundle.manifest) == (bundle.root / "bundle.json").read_text()


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
@pytest.mark.parametrize("version", DIGESTS)
def test_golden_bundle_still_gives_its_recorded_trajectory(version: str, backend: str) -> None:
    pytest.importorskip(backend, reason="draws the samples")
    bundle = read_bundle(GOLDEN / f"bundle-{version}")
    assert bundle.manifest.reference is not None
    run = read_reference(bundle.open_bytes(bundle.manifest.reference)).trajectory
    assert run.noise is not None
    with Sampler.load(bundle, backend=backend, threads=1) as sampler:
        steering = {"condition": run.conditions, "guidance": 1.0 if run.guidance is None else run.guidance}
        samples = sampler.sample(x_T=run.x_T, plan=run.plan, noise=run.noise, **steering)
    assert (run.guidance is None) == (NULLS[version] is None)
    np.testing.assert_allclose(samples, run.states[-1], atol=1e-5)
