"""Bundles whose graphs take pictures of other heights and widths than the trained ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from ddpm_deploy import Sampler
from ddpm_deploy.backends import open_backend
from ddpm_deploy.bundle import Bundle, OutputAffine, from_json, read_onnx_manifest, to_json
from ddpm_deploy.errors import BundleError, ExportError, ParityError
from ddpm_deploy.export import Options, export_module
from ddpm_deploy.export.api import export_source
from ddpm_deploy.export.free_size import with_free_size
from ddpm_deploy.export.sources.base import Settings
from ddpm_deploy.export.sources.open import open_source
from ddpm_deploy.noise import initial_noise, noise_source
from ddpm_deploy.one_file import sample_with_graph
from ddpm_deploy.sample import main as sample_command
from ddpm_deploy.schedule import NoiseSchedule

RUNTIMES = ("onnxruntime", "openvino")
SIZES = ((8, 8), (12, 8), (4, 16), (20, 12))
LABELS = {"labels": np.array([0, 2])}
OPTIONS = Options(targets=("onnxruntime-cpu", "openvino"), opset=18, free_size=True, parity_timesteps=12, batches=(2,))


@pytest.fixture(scope="module")
def network() -> Any:
    """Two levels, so even sizes, and attention."""
    from ddpm_deploy.model import UNet, UNetConfig

    torch.manual_seed(0)
    config = UNetConfig(in_channels=3, block_out_channels=(8, 16), layers_per_block=1, norm_groups=4, num_classes=3,
                        middle_attention=True)  # fmt: skip
    made = UNet(config).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.2)
    return made


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory, network: Any, settings: dict[str, Any]) -> Bundle:
    out = tmp_path_factory.mktemp("free") / "bundle"
    return export_module(network, out, spec=network.spec(), options=OPTIONS, **settings)


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def truth(network: Any, plan: Any, x_T: np.ndarray) -> np.ndarray:
    def denoise(x: np.ndarray, t: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            out: np.ndarray = network(*map(torch.from_numpy, (x, t, LABELS["labels"]))).numpy()
        return out

    result: np.ndarray = plan.run(denoise, x_T)
    return result


def test_axes_are_named_and_the_manifest_tells_of_what_they_are_multiples(free: Bundle) -> None:
    manifest = free.manifest
    assert (manifest.sample_shape, manifest.size_multiple) == ((3, 8, 8), 2)
    for file in manifest.files:
        image = next(spec for spec in file.inputs if spec.name in ("x", "x_T"))
        assert image.shape == file.outputs[0].shape == ("B", 3, "H", "W")
    graph = onnx.load(free.root / "denoiser.fp32.onnx").graph
    for value in (graph.input[0], graph.output[0]):
        assert [axis.dim_param for axis in value.type.tensor_type.shape.dim] == ["B", "", "H", "W"]
    assert read_onnx_manifest(free.root / "denoiser.fp32.onnx").size_multiple == 2


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_denoiser_agrees_with_torch_at_every_size(free: Bundle, network: Any, runtime: str, size: Any) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, *size)).astype(np.float32)
    t = np.array([3, 30], np.float32)
    with torch.inference_mode():
        expected = network(*map(torch.from_numpy, (x, t, LABELS["labels"]))).numpy()
    with open_backend(runtime, free, threads=1) as backend:
        assert relative(backend.run({"x": x, "t": t, **LABELS})["prediction"], expected) <= 1e-5


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_sampler_and_one_file_draw_at_another_size_what_torch_draws(free: Bundle, network: Any, runtime: str) -> None:
    with Sampler.load(free, backend=runtime, threads=1) as sampler:
        plan = sampler.plan()
        got = sampler.sample(2, size=(12, 8), condition=LABELS, seed=5)
    x_T = initial_noise(5, range(2), (3, 12, 8))
    expected = truth(network, plan, x_T)
    np.testing.assert_allclose(got, expected, atol=1e-4)
    with open_backend(runtime, free, role="sampler", threads=1) as backend:
        np.testing.assert_allclose(sample_with_graph(backend, plan, x_T, condition=LABELS), expected, atol=1e-4)


def test_a_stochastic_plan_draws_noise_of_the_size_that_is_asked_for(free: Bundle) -> None:
    with Sampler.load(free, threads=1) as sampler:
        plan = sampler.plan("ddpm", 4)
        drawn = sampler.sample(2, size=(4, 12), plan=plan, condition=LABELS)
        x_T, noise = initial_noise(0, range(2), (3, 4, 12)), noise_source(0, range(2), (3, 4, 12))
        np.testing.assert_array_equal(drawn, sampler.sample(x_T=x_T, noise=noise, plan=plan, condition=LABELS))


def test_the_torch_backend_draws_at_another_size_too(free: Bundle, network: Any) -> None:
    with Sampler.load(free, backend="torch") as sampler:
        got = sampler.sample(2, size=(12, 8), condition=LABELS)
        expected = truth(network, sampler.plan(), initial_noise(0, range(2), (3, 12, 8)))
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_a_size_that_the_network_cannot_take_is_refused_before_it_is_run(free: Bundle) -> None:
    with Sampler.load(free, threads=1) as sampler:
        with pytest.raises(ValueError, match="size: got 9x8, expected multiples of 2"):
            sampler.sample(2, size=(9, 8), condition=LABELS)
        with pytest.raises(ValueError, match="x_T: got 8x5, expected multiples of 2"):
            sampler.sample(x_T=np.zeros((2, 3, 8, 5)), condition=LABELS)
        with pytest.raises(ValueError, match="size: got 8, expected height and width of pictures"):
            sampler.sample(2, size=(8,), condition=LABELS)
        with pytest.raises(ValueError, match="expected a sample of at most 268435456 numbers"):
            sampler.sample(2, size=(2**20, 2**20), condition=LABELS)
        with pytest.raises(ValueError, match=r"x_T: got shape \(2, 3, 8, 8\), expected \(n, 3, 12, 8\)"):
            sampler.sample(x_T=np.zeros((2, 3, 8, 8)), size=(12, 8), condition=LABELS)
        with pytest.raises(ValueError, match=r"x_T: got shape \(2, 1, 12, 8\), expected \(n, 3, 12, 8\)"):
            sampler.sample(x_T=np.zeros((2, 1, 12, 8)), condition=LABELS)


def test_a_bundle_of_one_size_refuses_others(exported: Path) -> None:
    with Sampler.load(exported, threads=1) as sampler:
        with pytest.raises(ValueError, match=r"size: got 12x8, but the graphs take 8x8 only; export .* --free-size"):
            sampler.sample(2, size=(12, 8), condition=LABELS)
        with pytest.raises(ValueError, match=r"x_T: got shape \(2, 3, 12, 8\), expected \(n, 3, 8, 8\)"):
            sampler.sample(x_T=np.zeros((2, 3, 12, 8)), condition=LABELS)
        assert sampler.sample(2, size=(8, 8), steps=1, condition=LABELS).shape == (2, 3, 8, 8)


def test_the_command_draws_at_another_size(free: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "labels.npy", LABELS["labels"])
    arguments = [str(free.root), "--out", str(tmp_path / "x.npy"), "--num", "2", "--steps", "2",
                 "--condition", f"labels={tmp_path / 'labels.npy'}"]  # fmt: skip
    assert sample_command([*arguments, "--size", "16x4"]) == 0
    assert np.load(tmp_path / "x.npy").shape == (2, 3, 16, 4)
    assert sample_command([*arguments, "--size", "9x4"]) == 2
    assert "size: got 9x4, expected multiples of 2" in capsys.readouterr().err


# -- where it cannot be -----------------------------------------------------------------------------------------------


class _Positional(torch.nn.Module):
    """Adds a picture of its own, so that only that size fits."""

    def __init__(self) -> None:
        super().__init__()
        self.place = torch.nn.Parameter(torch.randn(3, 8, 8))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x + self.place + t[:, None, None, None]


class _AnySize(torch.nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x * t[:, None, None, None]


def test_a_network_of_one_size_is_refused(free: Bundle, tmp_path: Path, settings: dict[str, Any]) -> None:
    kept = {key: value for key, value in settings.items() if key != "conditions"}
    with pytest.raises(ExportError, match="free_size: the network takes pictures of 8x8 only"):
        export_module(_Positional(), tmp_path / "b", options=OPTIONS, **kept)
    assert not (tmp_path / "b").exists()


def test_samples_that_are_no_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"free_size: got samples of shape \(6,\), expected pictures"):
        export_module(_AnySize(), tmp_path / "b", sample_shape=(6,), schedule=NoiseSchedule.linear(10),
                      output=OutputAffine((1.0,), (0.0,), "m"), options=OPTIONS)  # fmt: skip


def test_a_network_for_any_size_has_a_multiple_of_one(free: Bundle) -> None:
    assert with_free_size(free.manifest, _AnySize(), {}).size_multiple == 1


class _WrongElsewhere(torch.nn.Module):
    """Its graph is right at the trained size only."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        trained = torch.compiler.is_exporting() or x.shape[2] == 8
        return x * (t[:, None, None, None] / 40) * (1 if trained else 2)


def test_a_graph_that_is_right_at_the_trained_size_only_is_not_written(
    free: Bundle, tmp_path: Path, settings: dict[str, Any]
) -> None:
    kept = {key: value for key, value in settings.items() if key != "conditions"}
    with pytest.raises(ParityError, match=r"denoiser\.fp32\.onnx: at 9x8: relative error of one evaluation"):
        export_module(_WrongElsewhere(), tmp_path / "b", options=replace(OPTIONS, graphs=("denoiser",)), **kept)
    assert not (tmp_path / "b").exists()


def test_an_onnx_file_keeps_its_axes(free: Bundle, tmp_path: Path) -> None:
    source = open_source(free.root / "denoiser.fp32.onnx", Settings(
        t_name="t", sample_shape=(3, 8, 8), schedule={"kind": "linear", "T": 40}, prediction="eps",
        output={"scale": 1.0, "offset": 0.0, "units": "m"}))  # fmt: skip
    with pytest.raises(ExportError, match="free_size: got an ONNX file"):
        export_source(source, tmp_path / "b", options=OPTIONS)


@pytest.mark.parametrize("wrong", [0, -4, "4", True])
def test_a_manifest_with_a_nonsensical_multiple_is_refused(free: Bundle, wrong: Any) -> None:
    text = json.loads(to_json(free.manifest)) | {"size_multiple": wrong}
    with pytest.raises(BundleError, match="size_multiple: got"):
        from_json(json.dumps(text))


def test_only_pictures_have_a_multiple(free: Bundle) -> None:
    text = json.loads(to_json(free.manifest)) | {"sample_shape": [3, 8], "size_multiple": 4}
    with pytest.raises(BundleError, match="size_multiple: got 4, expected null"):
        from_json(json.dumps(text))
