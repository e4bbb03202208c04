"""What comes before the first picture: export, engine build, and reading a bundle with its hashes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import Bench
from benchmarks.peers import PeerUnavailable, save_diffusers
from ddpm_deploy.backends.tensorrt import BuildSettings, build_engine, open_adapter
from ddpm_deploy.bench.process import child_environment
from ddpm_deploy.bundle import read_bundle
from ddpm_deploy.errors import BackendUnavailable

TIMEOUT_S = 900


def test_export_from_diffusers(bench: Bench, benchmark: Any, tmp_path: Path) -> None:
    """The command as a user types it, on diffusers' folder of the model: one denoiser, parity at 8 timesteps."""
    source, out = tmp_path / "source", tmp_path / "bundle"
    benchmark.skipped = True
    try:
        save_diffusers(bench.model.bundle, source)
    except PeerUnavailable as error:
        bench.leave_out("export from a diffusers folder", str(error))
    options = ["--out", str(out), "--graph", "denoiser", "--parity-timesteps", "8", "--batches", "1", "--quiet"]
    command = [sys.executable, "-m", "ddpm_deploy.export", str(source), *options]
    seconds = benchmark.pedantic(_timed, args=(command,), rounds=1)
    size = sum(file.size_bytes for file in read_bundle(out).manifest.files)
    bench.note("export", what="export of a diffusers folder, denoiser fp32, a fresh process", seconds=seconds,
               size_bytes=size)  # fmt: skip


def test_read_bundle(bench: Bench, benchmark: Any) -> None:
    """With every hash verified, as each load does."""
    folder = bench.model.bundle.root
    read = benchmark.pedantic(lambda: _open_all(folder), rounds=5, warmup_rounds=1)
    bench.note("export", what="reading the bundle, every file's hash verified", seconds=benchmark.stats.stats.median,
               size_bytes=read)  # fmt: skip
    assert read > 0


def test_build_engine(bench: Bench, benchmark: Any) -> None:
    """A TensorRT-RTX engine of the denoiser, for batch 1; it builds without a GPU too."""
    benchmark.skipped = True
    bundle = bench.model.bundle
    file = bundle.file("denoiser", "fp32", "onnx")
    try:
        adapter = open_adapter("tensorrt-rtx")
        built = benchmark.pedantic(
            lambda: build_engine(adapter, bundle.open_bytes(file), file.inputs, BuildSettings(), precision="fp32"),
            rounds=1,
        )
    except (BackendUnavailable, ImportError) as error:
        bench.leave_out("a TensorRT-RTX engine", " ".join(str(error).split()), "tensorrt-rtx")
    what = "TensorRT-RTX engine of the denoiser, fp32, batch 1, built without a GPU"
    bench.note("export", what=what, seconds=built.seconds, size_bytes=len(built.engine))


def _timed(command: list[str]) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=child_environment())
    assert done.returncode == 0, done.stderr[-2000:]
    return time.perf_counter() - began


def _open_all(folder: Path) -> int:
    bundle = read_bundle(folder)
    return sum(len(bundle.open_bytes(file)) for file in bundle.manifest.files)
