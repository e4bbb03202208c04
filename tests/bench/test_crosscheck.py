"""The runtimes' own tools: their figures are of the right size, and what cannot be had says why."""

from __future__ import annotations

import stat
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddpm_deploy.bench import crosscheck
from ddpm_deploy.bench.crosscheck import onnxruntime_profiler, openvino_benchmark_app, trtexec
from ddpm_deploy.bench.limits import best_seconds, wall_seconds
from ddpm_deploy.bench.products import float_model, onnxruntime_product, openvino_product

SIZE = (1024, 1024, 1024)
SHAPES = {"a": SIZE[:2]}
APART = 4  # a factor; other processes share the machine


@pytest.fixture(scope="module")
def model() -> bytes:
    return float_model(SIZE)


def by_hand_ms(maker: Any) -> float:
    return 1e3 * best_seconds(maker(SIZE, "fp32", 1), wall_seconds, 0.3)


def test_benchmark_app_agrees_with_a_call_timed_by_hand(model: bytes) -> None:
    check = openvino_benchmark_app(model, SHAPES, 1, static=True, seconds=1)
    assert check.keys() == {"tool", "version", "figure_ms", "what"}, check
    assert 1 / APART < check["figure_ms"] / by_hand_ms(openvino_product) < APART
    assert "1 threads, static shapes" in check["what"]
    assert check["version"][:4].isdecimal()


def test_profiler_agrees_with_a_call_timed_by_hand(model: bytes) -> None:
    check = onnxruntime_profiler(model, SHAPES, 1, seconds=0.3)
    assert {"tool", "version", "figure_ms", "what"} <= check.keys()
    assert 1 / APART < check["figure_ms"] / by_hand_ms(onnxruntime_product) < APART
    assert check["kernels"] == 1


def test_profiler_leaves_no_file_behind(model: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnxruntime_profiler(model, SHAPES, 1, seconds=0.01)
    assert not list(tmp_path.iterdir())


def event(name: str, ts: int, dur: int) -> dict[str, Any]:
    return {"cat": "Node" if "kernel" in name else "Session", "name": name, "ts": ts, "dur": dur}


def test_kernels_belong_to_the_run_that_they_began_in() -> None:
    events = [
        event("session_initialization", 0, 90),
        *(event("Conv_0_kernel_time", 101, 3), event("Conv_1_kernel_time", 105, 4), event("model_run", 100, 10)),
        *(event("Conv_0_kernel_time", 120, 5), event("Conv_1_kernel_time", 126, 6), event("model_run", 120, 12)),
        event("SequentialExecutor::Execute", 121, 11),
    ]
    assert crosscheck._kernels_of_runs(events) == [[3, 4], [5, 6]]


def test_tool_that_is_missing_is_a_reason(model: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crosscheck.shutil, "which", lambda *given, **options: None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install 'ddpm-deploy[openvino]'" in openvino_benchmark_app(model, SHAPES, 1)["reason"]
    assert "pip install 'ddpm-deploy[cpu]'" in onnxruntime_profiler(model, SHAPES, 1)["reason"]
    assert "trtexec is not on PATH" in trtexec(model, SHAPES)["reason"]


def test_fault_of_our_own_is_not_taken_for_a_missing_tool(model: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ddpm_deploy.backends.onnxruntime", None)
    with pytest.raises(ImportError, match="ddpm_deploy"):
        onnxruntime_profiler(model, SHAPES, 1)


def test_tool_that_fails_is_a_reason_with_its_last_words() -> None:
    check = openvino_benchmark_app(b"not a model", SHAPES, 1, seconds=1)
    assert check.keys() == {"tool", "reason"}
    assert check["reason"].startswith("exit status 1: ")


NOTES = """#!{python}
import os, sys
words = sys.argv[1:]
files = [word.split("=")[-1] for word in words if word.endswith(".onnx")]
with open({noted!r}, "w") as file:
    print(*words, *map(os.path.getsize, files), sep="\\n", file=file)
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, *lines: str) -> Path:
    """Make a program of this name the one that is found; the file where it notes its words and the model's size."""
    noted, program = folder / "called", folder / name
    program.write_text(NOTES.format(python=sys.executable, noted=str(noted)) + "\n".join(lines))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(crosscheck.shutil, "which", lambda wanted, **options: str(program) if wanted == name else None)
    return noted


@pytest.mark.parametrize(("precision", "hint"), [("fp32", "f32"), ("bf16", "bf16"), ("int8", "f32")])
def test_benchmark_app_computes_as_our_rows_do(
    precision: str, hint: str, model: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = install(tmp_path, monkeypatch, "benchmark_app", "print('[ INFO ]    Median:        1.25 ms')")
    shapes = {"x": (4, 1, 8, 8), "t": (4,)}
    assert openvino_benchmark_app(model, shapes, 3, precision=precision)["figure_ms"] == 1.25
    words = noted.read_text().splitlines()
    given = dict(zip(words[:-1:2], words[1::2], strict=True))
    assert (given["-infer_precision"], given["-nthreads"], given["-nstreams"]) == (hint, "3", "1")
    assert (given["-api"], given["-data_shape"]) == ("sync", "x[4,1,8,8],t[4]")
    assert words[-1] == str(len(model))
    openvino_benchmark_app(model, shapes, 3, static=True)
    assert "-shape\nx[4,1,8,8],t[4]" in noted.read_text()


def test_figure_of_trtexec_is_the_median_of_its_gpu_time(
    model: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [
        "print('[I] Latency: min = 2.1 ms, max = 3 ms, mean = 2.2 ms, median = 2.5 ms, percentile(90%) = 2.9 ms')",
        "print('[I] GPU Compute Time: min = 1.1 ms, max = 2 ms, mean = 1.2 ms, median = 1.375 ms')",
        "print('[I] GPU Compute Time: the GPU latency to execute the kernels for a query.')",
    ]
    noted = install(tmp_path, monkeypatch, "trtexec", *said)
    assert trtexec(model, {"x": (4, 1, 8, 8), "t": (4,)})["figure_ms"] == 1.375
    words = noted.read_text().splitlines()
    assert "--shapes=x:4x1x8x8,t:4" in words
    assert "--optShapes=x:4x1x8x8,t:4" in words
    assert any(word.startswith("--onnx=") for word in words)
    assert words[-1] == str(len(model))


@pytest.mark.parametrize("lines", [["print('no figure here')"], ["print('Median: 1 ms'); raise SystemExit(2)"]])
def test_figure_counts_only_where_the_tool_says_that_it_worked(
    lines: list[str], model: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "benchmark_app", *lines)
    assert openvino_benchmark_app(model, SHAPES, 1).keys() == {"tool", "reason"}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "int64", "bool"])
def test_inputs_are_of_the_type_that_the_graph_asks_for(dtype: str) -> None:
    values = crosscheck._random((3, 4), dtype)
    assert (values.shape, values.dtype) == ((3, 4), np.dtype(dtype))
    assert (np.ptp(values.astype(float)) > 0) == dtype.startswith("float")  # whole numbers are labels: all zero
