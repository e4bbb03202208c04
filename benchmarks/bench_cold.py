"""From nothing to the first picture, each time in a process of its own: seconds, peak memory, size on the disk."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness import Bench
from benchmarks.peers import EAGER, save_diffusers
from benchmarks.specs import Options, Spec
from ddpm_deploy.bench.process import ColdStart, artefact_bytes, cold_start, first_picture
from ddpm_deploy.bench.record import OWN, PEER

NFE = 12
RUNS, RUNS_FULL = 3, 7
PEER_PROGRAM = Path(__file__).parent / "cold_diffusers.py"


def specs(options: Options) -> list[Spec]:
    """The service's way, and diffusers'."""
    own = [(backend, "fp32", OWN) for backend in options.own("onnxruntime", "openvino")]
    return [Spec("cold", "cold start", *who[:2], 1, who[2], "unipc", NFE) for who in [*own, (EAGER, "fp32", PEER)]]


def test_cold_start(spec: Spec, bench: Bench, benchmark: Any, replay: Any, tmp_path: Path) -> None:
    benchmark.skipped = True
    runs = RUNS_FULL if bench.options.full else RUNS
    with bench.skipping(spec):
        measured = _measure(spec, bench, tmp_path, runs)
    facts = {name: value for name, value in asdict(measured).items() if name != "runs"}
    samples = [run["total_s"] for run in measured.runs]
    replay(samples)
    label = "diffusers" if spec.kind == PEER else spec.label
    size = _size(spec, bench, tmp_path)
    bench.note("cold_start", contender=label, **facts, total_samples_s=samples, artefact_bytes=size, n=len(samples))
    assert measured.total_s >= measured.import_s + measured.load_s + measured.first_picture_s


def _measure(spec: Spec, bench: Bench, folder: Path, runs: int) -> ColdStart:
    bundle, options = bench.model.bundle, bench.options
    if spec.kind == OWN:
        return first_picture(bundle.root, spec.contender, spec.precision, spec.solver, spec.steps, options.threads,
                             device=options.device, runs=runs)  # fmt: skip
    save_diffusers(bundle, folder / "diffusers")
    command = [sys.executable, str(PEER_PROGRAM), str(folder / "diffusers"), "--steps", str(spec.steps)]
    return cold_start([*command, "--threads", str(options.threads)], runs, device=options.device)


def _size(spec: Spec, bench: Bench, folder: Path) -> int:
    if spec.kind == PEER:
        return sum(file.stat().st_size for file in (folder / "diffusers").rglob("*.safetensors"))
    return artefact_bytes(bench.model.bundle.manifest)[_file(spec, bench).path]


def _file(spec: Spec, bench: Bench) -> Any:
    target = {"onnxruntime": "onnxruntime-cpu", "openvino": "openvino"}[spec.contender]
    return bench.model.bundle.file("denoiser", spec.precision, target)


def test_sizes(bench: Bench) -> None:
    """What a deployment copies, file by file."""
    files = {file.path: file for file in bench.model.bundle.manifest.files}
    sizes = artefact_bytes(bench.model.bundle.manifest)
    for path, size in sizes.items():
        bench.note("sizes", file=path, precision=files[path].precision, size_bytes=size)
    if not sizes:
        pytest.fail("the bundle has no model file")
