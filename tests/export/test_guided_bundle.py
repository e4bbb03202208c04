"""Exporting a model that can be guided: every graph, what is recorded of it, and parity with it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddpm_deploy import Sampler
from ddpm_deploy.backends import open_backend
from ddpm_deploy.bundle import Condition, Defaults, read_bundle
from ddpm_deploy.export import Options, export_module
from ddpm_deploy.export.triton import Serving, write_model_repository
from ddpm_deploy.noise import initial_noise, noise_source
from ddpm_deploy.one_file import sample_with_graph
from ddpm_deploy.parity.__main__ import main as parity
from ddpm_deploy.reference import read_reference
from ddpm_deploy.schedule import NoiseSchedule

CONDITION = Condition("labels", (), "int64", ("a", "b", "c"), null=3)
OPTIONS = Options(targets=("onnxruntime-cpu", "onnxruntime-cuda", "tensorrt"), parity_timesteps=12)


def exported(out: Path, settings: dict[str, Any], options: Options, **config: Any) -> Path:
    """The bundle of a small U-Net with three classes and a null class."""
    import torch

    from ddpm_deploy.model import UNet, UNetConfig

    torch.manual_seed(0)
    size = {"in_channels": 3, "block_out_channels": (8,), "layers_per_block": 1, "norm_groups": 4}
    network = UNet(UNetConfig(**size, num_classes=3, null_class=True, **config))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.2)
    export_module(network, out, spec=network.spec(), options=options, conditions=(CONDITION,), **settings)
    return out


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, settings: dict[str, Any]) -> Path:
    told = {name: value for name, value in settings.items() if name != "conditions"}
    return exported(tmp_path_factory.mktemp("guided") / "bundle", told, OPTIONS)


def test_only_the_graphs_with_a_loop_or_a_row_take_weights(bundle: Path) -> None:
    shapes = {
        file.path: [spec.shape for spec in file.inputs if spec.name == "guidance"]
        for file in read_bundle(bundle).manifest.files
        if file.target != "torch"
    }
    for path, found in shapes.items():
        assert len(found) == (not path.startswith("denoiser")), path
    assert shapes["step.fp32.onnxruntime-cuda.onnx"] == [("B",)]
    assert shapes["sampler.fp32.onnxruntime-cpu.onnx"] == [("N", "guidance_1")]
    assert shapes["sampler.fp32.tensorrt.onnx"] == [("N", "B")]


def test_every_graph_was_measured(bundle: Path) -> None:
    for file in read_bundle(bundle).manifest.files:
        assert file.target == "torch" or file.parity, file.path


def test_one_file_draws_what_the_sampler_draws(bundle: Path) -> None:
    weights, labels = np.array([3.0, 0.0, 1.5], np.float32), np.array([2, 0, 3])
    with (
        Sampler.load(bundle, threads=1) as sampler,
        open_backend("onnxruntime", read_bundle(bundle), role="sampler", threads=1) as graph,
    ):
        plan, x_T = sampler.plan(), initial_noise(0, range(3), (3, 8, 8))
        expected = sampler.sample(x_T=x_T, condition={"labels": labels}, guidance=weights)
        found = sample_with_graph(graph, plan, x_T, condition={"labels": labels}, guidance=weights)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_recorded_trajectory_is_guided_and_the_points_know_the_null(bundle: Path) -> None:
    read = read_bundle(bundle)
    assert read.manifest.reference is not None
    reference = read_reference(read.open_bytes(read.manifest.reference))
    assert reference.trajectory.guidance is not None
    assert reference.trajectory.guidance.tolist() == [2.0, 0.5]
    assert reference.trajectory.conditions["labels"].tolist() == [0, 1]
    assert set(reference.conditions["labels"].tolist()) == {0, 1, 2, 3}


def test_parity_with_what_was_recorded_holds_on_every_runtime(bundle: Path) -> None:
    assert parity([str(bundle), "--against", "reference", "--backends", "onnxruntime,openvino"]) == 0


def test_triton_is_told_of_the_weights(bundle: Path, tmp_path: Path) -> None:
    serving = {"step": Serving(instance_kind="KIND_GPU"), "sampler": Serving()}
    step, sampler = (
        (write_model_repository(read_bundle(bundle), tmp_path, graph=graph, serving=serving[graph]) / "config.pbtxt")
        .read_text()
        .split('name: "guidance"')[1]
        for graph in ("step", "sampler")
    )
    assert re.search(r"dims: \[\s*1\s*\]\s+reshape", step.split("name:")[0])
    assert "optional: true" in sampler.split("name:")[0]
    assert re.search(r"dims: \[\s*-1,\s*-1\s*\]", sampler.split("name:")[0])


def test_a_learned_variance_on_the_cosine_schedule_is_guided_in_every_graph(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    told = {name: value for name, value in settings.items() if name != "conditions"}
    told |= {"schedule": NoiseSchedule.cosine(40), "defaults": Defaults("ddpm", 6, "trailing"), "variance": "learned"}
    options = Options(targets=("onnxruntime-cpu", "onnxruntime-cuda"), parity_timesteps=8)
    read = read_bundle(exported(tmp_path / "b", told, options, out_channels=6))
    assert all(file.target == "torch" or file.parity for file in read.manifest.files)
    labels, x_T = {"labels": np.array([1, 2])}, initial_noise(0, range(2), (3, 8, 8))
    with (
        Sampler.load(read, threads=1) as sampler,
        open_backend("onnxruntime", read, role="sampler", threads=1) as graph,
    ):
        plan, noise = sampler.plan(), noise_source(0, range(2), (3, 8, 8))
        assert plan.log_variance is not None
        expected = sampler.sample(2, condition=labels, guidance=2.0)
        found = sample_with_graph(graph, plan, x_T, noise, labels, 2.0)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert parity([str(tmp_path / "b"), "--against", "reference", "--backends", "onnxruntime,openvino"]) == 0
