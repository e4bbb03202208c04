"""From nothing to the first picture, each time in a process of its own: seconds, peak memory, size on the disk."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.harness import Bench
from benchmarks.peers import EAGER, save_diffusers
from benchmarks.specs import Options, Spec
from benchmarks.subjects import parity_in_words
from ddpm_deploy.bench.process import ColdStart, artefact_bytes, cold_starts, own_command
from ddpm_deploy.bench.record import OWN, PEER
from ddpm_deploy.errors import DdpmDeployError

NFE = 12
RUNS, RUNS_FULL = 3, 7
PEER_PROGRAM = Path(__file__).parent / "cold_diffusers.py"


def specs(options: Options) -> list[Spec]:
    """The service's way, and diffusers'."""
    own = [(backend, "fp32", OWN) for backend in options.own("onnxruntime", "openvino")]
    return [Spec("cold", "cold start", *who[:2], 1, who[2], "unipc", NFE) for who in [*own, (EAGER, "fp32", PEER)]]


def test_cold_start(spec: Spec, bench: Bench, benchmark: Any, replay: Any, tmp_path_factory: Any) -> None:
    benchmark.skipped = True
    folder = bench.made_once("cold folder", lambda: tmp_path_factory.mktemp("cold"))
    with bench.skipping(spec):
        parity = parity_in_words(spec.contender, spec.kind, bench)
        measured = bench.made_once("cold", lambda: _measure_all(bench, folder))[spec.label]
    facts = {name: value for name, value in asdict(measured).items() if name != "runs"}
    samples = [run["total_s"] for run in measured.runs]
    replay(samples)
    label = "diffusers" if spec.kind == PEER else spec.label
    size = _size(spec, bench, folder)
    bench.note("cold_start", contender=label, parity=parity, **facts, total_samples_s=samples, artefact_bytes=size,
               n=len(samples))  # fmt: skip
    assert measured.total_s > max(measured.import_s, measured.load_s, measured.first_picture_s)


def _measure_all(bench: Bench, folder: Path) -> dict[str, ColdStart]:
    """All that can be had, one process of each in every round."""
    commands = {}
    for spec in specs(bench.options):
        try:
            commands[spec.label] = _command(spec, bench, folder)
        except (DdpmDeployError, ImportError):
            continue  # its own test says so
    runs = RUNS_FULL if bench.options.full else RUNS
    return cold_starts(commands, runs, device=bench.options.device)


def _command(spec: Spec, bench: Bench, folder: Path) -> list[str]:
    bundle, options = bench.model.bundle, bench.options
    if spec.kind == OWN:
        bench.sampler(spec.contender, spec.precision)
        asked = (spec.contender, spec.precision, spec.solver, spec.steps, options.threads)
        return own_command(bundle.root, *asked, device=options.device)
    save_diffusers(bundle, folder / "diffusers")
    command = [sys.executable, str(PEER_PROGRAM), str(folder / "diffusers"), "--steps", str(spec.steps)]
    return [*command, "--threads", str(options.threads), "--device", options.device]


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
    assert sizes
    assert min(sizes.values()) > 0
