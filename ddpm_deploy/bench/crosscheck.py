"""Rows of the report against the runtimes' own tools, which share no code with the measuring protocol here.

Each check returns `tool`, `version`, `figure_ms` (the median of one evaluation) and `what`, or `tool` and `reason`
where it could not be had.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_deploy.backends.base import one_line
from ddpm_deploy.bench.machine import package_version

SECONDS = 3.0
WARMUP_S = 0.5
TIMEOUT_S = 600.0
MIN_RUNS, MAX_RUNS = 10, 300  # of the profiler, whose trace grows with each

Shapes = Mapping[str, Sequence[int]]
Check = dict[str, Any]

# Of what the graph leaves in float.
OPENVINO_PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32", "int8-bf16": "bf16"}
NUMPY_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


def openvino_benchmark_app(
    model: bytes,
    shapes: Shapes,
    threads: int,
    *,
    precision: str = "fp32",
    static: bool = False,
    seconds: float = SECONDS,
) -> Check:
    """OpenVINO's benchmark_app: one stream, one request after the other, inputs copied in every time.

    shapes: of every input, the batch included. static: compile for these shapes alone, not for a free batch.
    """
    tool = "benchmark_app"
    program = _beside_python(tool)
    if program is None:
        return {"tool": tool, "reason": "benchmark_app is not installed; run pip install 'ddpm-deploy[openvino]'"}
    described = ",".join(f"{name}[{','.join(map(str, shape))}]" for name, shape in shapes.items())
    options = ["-d", "CPU", "-hint", "none", "-nstreams", "1", "-nthreads", str(threads), "-api", "sync"]
    options += ["-infer_precision", OPENVINO_PRECISIONS[precision], "-t", _whole(seconds)]
    options += ["-shape" if static else "-data_shape", described, "-inference_only", "False"]
    return _checked(
        tool,
        package_version("openvino"),
        lambda path: [program, *options, "-m", str(path)],
        model,
        pattern=r"Median:\s+([\d.]+) ms",
        what=f"median latency of one evaluation, {threads} threads, {'static' if static else 'dynamic'} shapes",
    )


def onnxruntime_profiler(model: bytes, shapes: Shapes, threads: int, *, seconds: float = SECONDS) -> Check:
    """ONNX Runtime's own trace of a session: the times of all kernels of a run together, the median over the runs.

    Each kernel's time has some 5 us of the trace's own cost in it, so on networks of a few milliseconds the figure is
    too high. The time of the whole run in the same trace would be twice as far off. kernels: of one run.
    """
    tool = "onnxruntime profiler"
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError:
        return {"tool": tool, "reason": "onnxruntime is not installed; run pip install 'ddpm-deploy[cpu]'"}
    from ddpm_deploy.backends.onnxruntime import spin_briefly

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        spin_briefly(options)
        options.enable_profiling = True
        options.profile_file_prefix = os.path.join(folder, "profile")
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        feeds = {value.name: _random(shapes[value.name], NUMPY_TYPES[value.type]) for value in session.get_inputs()}
        runs = _run_for(lambda: session.run(None, feeds), seconds)
        events = json.loads(Path(session.end_profiling()).read_text())
    kernels_us = _kernels_of_runs(events)[-runs:]
    return {
        "tool": tool,
        "version": onnxruntime.__version__,
        "figure_ms": statistics.median(map(sum, kernels_us)) / 1e3,
        "what": f"median over {runs} runs of the sum of kernel times, {threads} threads, with the trace's own cost",
        "kernels": len(kernels_us[-1]),
    }


def trtexec(model: bytes, shapes: Shapes, *, seconds: float = SECONDS) -> Check:
    """TensorRT's trtexec: the median time of the device in one evaluation; precisions are what the graph says."""
    tool = "trtexec"
    program = shutil.which(tool)
    if program is None:
        return {"tool": tool, "reason": "trtexec is not on PATH; it comes with TensorRT's archives and containers"}
    described = ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())
    options = [f"--{kind}Shapes={described}" for kind in ("min", "opt", "max")] + [f"--shapes={described}"]
    options += ["--stronglyTyped", "--useCudaGraph", "--noDataTransfers", f"--duration={_whole(seconds)}"]
    return _checked(
        tool,
        package_version("tensorrt"),
        lambda path: [program, *options, f"--onnx={path}"],
        model,
        pattern=r"GPU Compute Time:.*?median = ([\d.]+) ms",
        what="median GPU compute time of one evaluation, as a CUDA graph, without copies",
    )


def _checked(
    tool: str, version: str | None, command: Callable[[Path], list[str]], model: bytes, *, pattern: str, what: str
) -> Check:
    """Run a tool on a file of the model, and read the figure that it prints."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model)
        try:
            done = subprocess.run(
                command(path),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=TIMEOUT_S,
                cwd=folder,
            )
        except (OSError, subprocess.SubprocessError) as error:
            return {"tool": tool, "reason": one_line(error)}
    found = re.search(pattern, done.stdout)
    if done.returncode or found is None:
        said = done.stdout.replace(folder, "").strip().splitlines()
        return {"tool": tool, "reason": f"exit status {done.returncode}: {said[-1] if said else 'it printed nothing'}"}
    return {"tool": tool, "version": version, "figure_ms": float(found[1]), "what": what}


def _beside_python(name: str) -> str | None:
    """A program of this environment, else of PATH."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def _run_for(call: Callable[[], object], seconds: float) -> int:
    """Call for so long, after a warm-up that does not count; how many calls were made."""
    _repeat(call, WARMUP_S, 2)
    return _repeat(call, seconds, MIN_RUNS)


def _repeat(call: Callable[[], object], seconds: float, least: int) -> int:
    runs, ends = 0, time.perf_counter() + seconds
    while runs < least or (runs < MAX_RUNS and time.perf_counter() < ends):
        call()
        runs += 1
    return runs


def _kernels_of_runs(events: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Microseconds of every kernel, run by run; a kernel belongs to the last run that began before it."""
    begins = sorted(event["ts"] for event in events if event["name"] == "model_run")
    runs: list[list[float]] = [[] for _ in begins]
    for event in events:
        began = bisect_right(begins, event["ts"])
        if began and event["name"].endswith("_kernel_time"):
            runs[began - 1].append(event["dur"])
    return runs


def _random(shape: Sequence[int], dtype: str) -> np.ndarray:
    """Gaussian noise, or zeros where whole numbers are asked for, such as labels."""
    if np.dtype(dtype).kind != "f":
        return np.zeros(shape, dtype)
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def _whole(seconds: float) -> str:
    return str(max(1, round(seconds)))
