"""Large weights laid out in a private file: the same bits, half the memory, nothing left behind."""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
from onnx import TensorProto, helper, numpy_helper

from ddpm_deploy.backends import mapped
from ddpm_deploy.backends.mapped import WEIGHTS, spilled
from ddpm_deploy.backends.onnxruntime import CPU, CUDA, OnnxRuntimeBackend, _ready
from ddpm_deploy.bundle import TensorSpec, default_bundle, read_bundle

SPECS = [TensorSpec("x", ("B", 300), "float32")], [TensorSpec("y", ("B", 300), "float32")]


def dense(layers: int = 3, n: int = 300) -> bytes:
    """Products with n x n matrices, 360 kB each, and biases that are small."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for i in range(layers):
        weights += [
            numpy_helper.from_array(rng.normal(0, n**-0.5, (n, n)).astype(np.float32), f"w{i}"),
            numpy_helper.from_array(rng.normal(0, 1, n).astype(np.float32), f"b{i}"),
        ]
        output = "y" if i == layers - 1 else f"h{i}"
        nodes.append(helper.make_node("Gemm", [last, f"w{i}", f"b{i}"], [output]))
        last = output
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("B", n)) for name in "xy"]
    graph = helper.make_graph(nodes, "dense", tensors[:1], tensors[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


@pytest.fixture(autouse=True)
def every_graph_is_worth_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mapped, "WORTHWHILE_BYTES", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def run(model: bytes | Path) -> np.ndarray:
    feeds = {"x": np.linspace(-1, 1, 600, dtype=np.float32).reshape(2, 300)}
    with OnnxRuntimeBackend._open(model, *SPECS, "fp32", "cpu", 1) as backend:
        first = backend.run(feeds)["y"]
        for path in model.parent.iterdir() if isinstance(model, Path) else ():
            path.unlink()  # loaded, it needs the file no more
        np.testing.assert_array_equal(backend.run(feeds)["y"], first)
    return first


def test_outputs_are_the_same_bits_and_the_folder_is_gone(tmp_path: Path) -> None:
    model = dense()
    with spilled(model) as path:
        assert isinstance(path, Path)
        assert (path.parent / WEIGHTS).stat().st_size >= 3 * 300 * 300 * 4 > path.stat().st_size
        assert path.parent.stat().st_mode & 0o077 == 0
        np.testing.assert_array_equal(run(path), run(model))
    assert not list(tmp_path.iterdir())


def test_onnx_reads_the_same_model_from_the_files() -> None:
    model = dense()
    with spilled(model) as path:
        read = onnx.load(str(path))  # external data included
    for tensor in read.graph.initializer:
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    assert read == onnx.load_from_string(model)


@pytest.mark.parametrize(("provider", "kind"), [(CPU, Path), (CUDA, Path), ("XnnpackExecutionProvider", bytes)])
def test_only_providers_that_are_known_to_read_at_once_are_given_a_file(provider: str, kind: type) -> None:
    bundle = read_bundle(default_bundle())
    with _ready(bundle, bundle.file("denoiser", "fp32", None), provider) as (model, weights):
        assert isinstance(model, kind)
        assert weights is None


def test_a_small_graph_stays_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "WORTHWHILE_BYTES", 2**25)
    with spilled(model := dense()) as kept:
        assert kept is model


def test_a_full_disk_costs_memory_only(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with caplog.at_level(logging.WARNING), spilled(model := dense()) as kept:
        assert kept is model
    assert "No space left on device" in caplog.text


def test_no_folder_to_write_to_costs_memory_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/no/such/folder")
    with spilled(model := dense()) as kept:
        assert kept is model


PEAK = """
import sys
from pathlib import Path
from ddpm_deploy.backends import mapped
from ddpm_deploy.backends.onnxruntime import CPU, open_session
mapped.WORTHWHILE_BYTES = int(sys.argv[2])
with mapped.spilled(Path(sys.argv[1]).read_bytes()) as model:
    session = open_session(model, None, CPU, {}, 1)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_peak_memory_is_lower_by_the_weights_and_more(tmp_path: Path) -> None:
    model = tmp_path / "wide.onnx"
    model.write_bytes(dense(3, 2000))
    laid_out, whole = (_peak_kib(model, least) for least in (0, 2**40))
    assert whole - laid_out > model.stat().st_size / 1024


def _peak_kib(model: Path, least: int) -> int:
    done = subprocess.run([sys.executable, "-c", PEAK, str(model), str(least)], check=True, capture_output=True)
    return int(done.stdout)
