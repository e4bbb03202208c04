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
    return with_step(labelled_bundle, tmp_path_factory.mktemp("stepped") / "bundle")


@pytest.fixture(scope="session")
def guided(tmp_path_factory: pytest.TempPathFactory, guided_bundle: Path) -> Bundle:
    """The same with a null class, so that the graph takes weights."""
    return with_step(guided_bundle, tmp_path_factory.mktemp("guided") / "bundle")


def with_step(source: Path, out: Path) -> Bundle:
    import onnx

    from ddpm_deploy.export.signature import step_specs
    from ddpm_deploy.export.step import build_step
    from ddpm_deploy.plan.feeds import STATE_SIZE

    bundle, shape = read_bundle(source), (3, 8, 8)
    settings = {"sample_shape": shape, "state_size": STATE_SIZE, "learned_variance": False}
    inputs = bundle.manifest.files[0].inputs
    denoiser, manifest = onnx.load(source / "denoiser.fp32.onnx"), bundle.manifest
    graph = build_step(denoiser, inputs=inputs, target="onnxruntime-cuda", nulls=manifest.nulls, **settings)
    taken, given = step_specs(inputs, shape, state_size=STATE_SIZE, learned_variance=False, guided=manifest.guided)
    file = ModelFile("step.fp32.onnx", "step", "fp32", "onnx", 20, taken, given)
    contents = {f.path: (source / f.path).read_bytes() for f in manifest.files}
    write_bundle(
        out, replace(manifest, files=(*manifest.files, file)), contents | {file.path: graph.SerializeToString()}
    )
    return read_bundle(out)


def make_evaluator(kind: str, bundle: Bundle, device: Any) -> Evaluator:
    if kind == "onnxruntime":
        return step_evaluator(bundle, "fp32", "cpu", 1, device)
    from ddpm_deploy.backends.cuda.torch_evaluator import TorchEvaluator

    network: Any = open_backend("torch", bundle, threads=1)
    learned, nulls = bundle.manifest.variance == "learned", bundle.manifest.nulls
    return TorchEvaluator(network._runtime, autocast=None, learned=learned, nulls=nulls)


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
