"""Bundles with a `step` graph, and loops around them on a host that stands in for a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from host_device import HostDevice

from ddpm_deploy.backends import open_backend
from ddpm_deploy.backends.cuda import Evaluator, Loop
from ddpm_deploy.backends.onnxruntime import step_evaluator
from ddpm_deploy.bundle import Bundle, ModelFile, read_bundle, write_bundle

KINDS = ("torch", "onnxruntime")


@pytest.fixture(scope="session")
def stepped(tmp_path_factory: pytest.TempPathFactory, labelled_bundle: Path) -> Bundle:
    """The bundle with three classes, and a `step` graph made of its denoiser."""
    import onnx

    from ddpm_deploy.export.signature import step_specs
    from ddpm_deploy.export.step import build_step
    from ddpm_deploy.plan.feeds import STATE_SIZE

    bundle, shape = read_bundle(labelled_bundle), (3, 8, 8)
    settings = {"sample_shape": shape, "state_size": STATE_SIZE, "learned_variance": False}
    inputs = bundle.manifest.files[0].inputs
    graph = build_step(
        onnx.load(labelled_bundle / "denoiser.fp32.onnx"), inputs=inputs, target="onnxruntime-cuda", **settings
    )
    taken, given = step_specs(inputs, shape, state_size=STATE_SIZE, learned_variance=False)
    file = ModelFile("step.fp32.onnx", "step", "fp32", "onnx", 20, taken, given)
    manifest = replace(bundle.manifest, files=(*bundle.manifest.files, file))
    contents = {f.path: (labelled_bundle / f.path).read_bytes() for f in bundle.manifest.files}
    out = tmp_path_factory.mktemp("stepped") / "bundle"
    write_bundle(out, manifest, {**contents, file.path: graph.SerializeToString()})
    return read_bundle(out)


def make_evaluator(kind: str, bundle: Bundle, device: Any) -> Evaluator:
    if kind == "onnxruntime":
        return step_evaluator(bundle, "fp32", "cpu", 1, device)
    from ddpm_deploy.backends.cuda.torch_evaluator import TorchEvaluator

    network: Any = open_backend("torch", bundle, threads=1)
    return TorchEvaluator(network._runtime, autocast=None, learned=bundle.manifest.variance == "learned")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def open_loop_on(kind: str) -> Callable[..., Loop]:
    """(bundle, buckets, room_bytes) -> a loop of this kind on a host."""

    def opened(bundle: Bundle, buckets: tuple[int, ...] = (1, 4), room_bytes: int | None = None) -> Loop:
        device = HostDevice(room_bytes)
        return Loop(device, make_evaluator(kind, bundle, device), buckets)

    return opened
