"""TensorRT as one writes it by hand: built for real where that takes no GPU, run on a stand-in that computes."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers", reason="the peers are built from it")
pytest.importorskip("onnxscript", reason="exports")
pytest.importorskip("onnxruntime", reason="computes what the GPU would")
import torch

sys.path.append(str(Path(__file__).parents[1] / "backends"))

import fake_runtime
import fake_tensorrt

from benchmarks import peers
from benchmarks.gpu.models import WEIGHTS, _manifest, _saved
from benchmarks.peers import PeerUnavailable, Setting, engines
from benchmarks.peers.pictures import open_loop
from benchmarks.peers.steps import open_onnxruntime
from ddpm_deploy import Sampler
from ddpm_deploy.backends.tensorrt import Gpu, open_adapter
from ddpm_deploy.backends.tensorrt.network import layer_types, parse
from ddpm_deploy.bundle import Bundle, write_bundle
from ddpm_deploy.errors import BackendUnavailable
from ddpm_deploy.model import UNet, UNetConfig

SETTING = Setting(batch=2, threads=1, steps=10)
RUNTIMES = tuple(engines.TITLES)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    torch.manual_seed(0)
    network = UNet(UNetConfig(3, (16, 32), layers_per_block=1, norm_groups=8)).eval()
    manifest = _manifest("tiny", network.spec(), 8, "small")
    return write_bundle(tmp_path_factory.mktemp("tiny") / "bundle", manifest, {WEIGHTS: _saved(network)})


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a runtime, in whose place there is one that computes with ONNX Runtime."""
    module = fake_runtime.make_module(request.param.replace("-", "_"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(engines, "_engines", {})
    return str(request.param)


def inputs(batch: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(batch).standard_normal((batch, 3, 8, 8), dtype=np.float32)
    return x, np.linspace(999, 1, batch, dtype=np.float32)


@pytest.mark.timeout(120)
def test_plain_export_in_an_engine_predicts_and_draws_what_ours_does(runtime: str, bundle: Bundle) -> None:
    step = engines.open_engine(bundle, SETTING, runtime=runtime)
    first, second = (step(*given) for given in ((inputs(2)[0], np.float32([5, 5])), inputs(2)))
    picture = open_loop("", bundle, SETTING, step=engines.TITLES[runtime], solver="unipc")
    with Sampler.load(bundle, backend="torch", threads=1) as sampler:
        x, t = inputs(2)
        np.testing.assert_allclose(second, sampler.backend.run({"x": x, "t": t})["prediction"], atol=1e-4)
        assert np.abs(first - second).max() > 1e-3
        assert picture.ours is not None
        np.testing.assert_allclose(picture(x), sampler.sample(x_T=x, **picture.ours), atol=1e-3)
    with pytest.raises(ValueError, match="batch: got 3, expected 2, for which the engine is built"):
        step(*inputs(3))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_narrow_plain_export_builds_in_its_precision(precision: str, bundle: Bundle) -> None:
    try:
        adapter = open_adapter("tensorrt-rtx")
    except BackendUnavailable as error:
        pytest.skip(str(error))
    setting = replace(SETTING, precision=precision)
    assert len(engines.build_plain(adapter, bundle, setting)) > 10_000
    network, _parser = parse(adapter.open(), peers.plain_export(bundle, None, precision))
    types = layer_types(network)
    assert set(types["convolution"]) == {precision}
    assert network.get_input(0).dtype.name == network.get_output(0).dtype.name == "FLOAT"


@pytest.mark.timeout(120)
def test_half_plain_export_computes_in_half_what_ours_does(bundle: Bundle) -> None:
    step, (x, t) = open_onnxruntime(bundle, replace(SETTING, precision="fp16")), inputs(2)
    with Sampler.load(bundle, backend="torch", threads=1) as sampler:
        expected = sampler.backend.run({"x": x, "t": t})["prediction"]
    actual = step(x, t)
    assert actual.dtype == np.float32
    assert 1e-5 < np.linalg.norm(actual - expected) / np.linalg.norm(expected) < 1e-2


@pytest.mark.parametrize(
    ("version", "precision", "exported", "flags"),
    [
        ("10.9.0", "fp16", "fp32", ["FP16"]),
        ("10.9.0", "fp32", "fp32", None),
        ("11.4.0", "bf16", "bf16", None),
    ],
)
def test_precision_is_told_as_the_version_wants_it(
    version: str,
    precision: str,
    exported: str,
    flags: list[str] | None,
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, asked = fake_tensorrt.make_module(version), []
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(engines, "plain_export", lambda bundle, cache, precision: asked.append(precision) or b"")
    engines.build_plain(open_adapter("tensorrt"), bundle, replace(SETTING, precision=precision))
    told = module.told
    assert asked == [exported]
    assert told.get("flags") == flags
    assert bool(told["network_flags"]) == (version == "11.4.0")
    assert told["profiles"] == [{"x": ((2, 3, 8, 8),) * 3, "t": ((2,),) * 3}]
    assert ("TF32" in told.get("cleared", ())) == (precision == "fp32")


def test_build_that_fails_makes_the_peer_unavailable(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.make_module(fails="no kernel for this"))
    monkeypatch.setattr(engines, "plain_export", lambda bundle, cache, precision: b"")
    with pytest.raises(PeerUnavailable, match="the plain export does not build: no kernel for this"):
        engines.engine_network(bundle, replace(SETTING, batch=5), runtime="tensorrt")


def test_peer_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = replace(SETTING, device="cuda:1")
    asked: list[int] = []

    def found(index: int) -> Any:
        asked.append(index)
        return Gpu("NVIDIA H100", "9.0", "580.65.06")

    with pytest.raises(PeerUnavailable, match="NVIDIA GPUs only"):
        engines.require_engines(SETTING, runtime="tensorrt")
    monkeypatch.setattr(engines, "find_gpu", found)
    with pytest.raises(PeerUnavailable, match=r"NVIDIA H100 has compute capability 9\.0, expected one of"):
        engines.require_engines(cuda, runtime="tensorrt-rtx")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(PeerUnavailable, match="the libraries come from NVIDIA's own index"):
        engines.require_engines(cuda, runtime="tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.make_module())
    engines.require_engines(cuda, runtime="tensorrt")
    assert asked == [1, 1, 1]
