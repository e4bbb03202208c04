"""Cold start and peak memory: each picture is drawn by a fresh interpreter, a child of this process.

Once the picture is there the child prints a JSON object as its last line, with `import_s`, `load_s`, `first_picture_s`
and `peak_rss_bytes` (null where unknown). On a GPU it then waits for its standard input to close, so that the memory
it holds there can be seen. Any program that does so can be measured beside ours.
"""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ddpm_deploy.backends.base import device_index
from ddpm_deploy.bench.machine import run_quietly
from ddpm_deploy.bundle import Manifest

# The clock starts before the package is imported; `python -m` would import it first.
FIRST_PICTURE = (
    "import time; began = time.perf_counter(); from ddpm_deploy.bench.first_picture import main; main(began)"
)
SOURCES = Path(__file__).parents[2]
KEYS = ("import_s", "load_s", "first_picture_s", "peak_rss_bytes")
TIMEOUT_S = 300.0


@dataclass(frozen=True)
class ColdStart:
    """Medians over the runs; seconds, bytes.

    load_s: of the runtime's own import too, and of its session. rest_s: the interpreter's start and what else no part
    counts. total_s: from the start of the process to the line that says that the picture is there. vram_bytes: what the
    device holds more than before. runs: the same for every run.
    """

    import_s: float
    load_s: float
    first_picture_s: float
    rest_s: float
    total_s: float
    peak_rss_bytes: int | None
    vram_bytes: int | None
    runs: tuple[Mapping[str, float | int | None], ...]


def own_command(
    bundle: str | os.PathLike[str],
    backend: str = "onnxruntime",
    precision: str = "fp32",
    solver: str | None = None,
    steps: int | None = None,
    threads: int | None = None,
    *,
    device: str = "cpu",
) -> list[str]:
    """The command that draws this package's first picture; arguments as in `Sampler.load` and `Sampler.sample`."""
    given = {"backend": backend, "precision": precision, "device": device, "solver": solver, "steps": steps}
    options = [f"--{name}={value}" for name, value in {**given, "threads": threads}.items() if value is not None]
    hold = [] if device_index(device) is None else ["--hold"]
    return [sys.executable, "-c", FIRST_PICTURE, os.fspath(bundle), *options, *hold]


def cold_start(
    command: Sequence[str], runs: int = 5, *, device: str = "cpu", timeout_s: float = TIMEOUT_S
) -> ColdStart:
    """Run a command that speaks as this module says, once to fill the file cache and then `runs` times.

    RuntimeError with the end of its messages where it fails.
    """
    return cold_starts({"it": command}, runs, device=device, timeout_s=timeout_s)["it"]


def cold_starts(
    commands: Mapping[str, Sequence[str]], runs: int = 5, *, device: str = "cpu", timeout_s: float = TIMEOUT_S
) -> dict[str, ColdStart]:
    """As `cold_start` for several commands, one after the other in every round, so that drift reaches all alike."""
    if runs < 1:
        raise ValueError(f"runs: got {runs}, expected at least 1")
    for command in commands.values():
        _run_once(command, device, timeout_s)
    rounds = [{name: _run_once(c, device, timeout_s) for name, c in commands.items()} for _ in range(runs)]
    return {name: _over([figures[name] for figures in rounds]) for name in commands}


def _over(runs: Sequence[Mapping[str, Any]]) -> ColdStart:
    return ColdStart(**{key: _median([run[key] for run in runs]) for key in runs[0]}, runs=tuple(runs))


def artefact_bytes(manifest: Manifest) -> dict[str, int]:
    """The size of every model file, by its path, with the weights that lie beside it."""
    beside = {data.path: data.size_bytes for data in manifest.weights}
    return {file.path: file.size_bytes + beside.get(file.weights or "", 0) for file in manifest.files}


def child_environment() -> dict[str, str]:
    """Ours, with this package to be found, compiled files as installed, and lines that come when they are printed."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    paths = [str(SOURCES), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def device_memory_bytes(device: str) -> int | None:
    """What all processes hold on a CUDA device; None for the CPU, or where nvidia-smi does not tell."""
    index = device_index(device)
    if index is None:
        return None
    query = ["nvidia-smi", f"--id={index}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    text = (run_quietly(query) or "").strip()
    return int(text) * 2**20 if text.isdecimal() else None


def _run_once(command: Sequence[str], device: str, timeout_s: float) -> dict[str, Any]:
    before = device_memory_bytes(device)
    with tempfile.TemporaryFile("w+") as messages:
        began = time.perf_counter()
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=messages, text=True, env=child_environment()
        ) as child:
            watch = threading.Timer(timeout_s, child.kill)
            watch.start()
            figures = _figures(child.stdout or ())
            total_s = time.perf_counter() - began
            held = device_memory_bytes(device) if child.poll() is None else None
            child.communicate()
            watch.cancel()
        if child.returncode or figures is None:
            raise RuntimeError(_failure(command, child.returncode, total_s, messages))
    vram = None if held is None or before is None else held - before
    rest_s = total_s - sum(figures[key] for key in KEYS[:3])
    return {**figures, "rest_s": rest_s, "total_s": total_s, "vram_bytes": vram}


def _figures(lines: Iterable[str]) -> dict[str, Any] | None:
    """The first line that is a JSON object with all keys; the others are messages."""
    for line in lines:
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and found.keys() >= set(KEYS):
            return {key: found[key] for key in KEYS}
    return None


def _failure(command: Sequence[str], code: int, seconds: float, messages: IO[str]) -> str:
    messages.seek(0)
    lines = messages.read().strip().splitlines()
    return (
        f"cold start: {shlex.join(command)}: got exit status {code} after {seconds:.0f} s, expected 0 and a line of "
        f"JSON with {', '.join(KEYS)}; it said: {lines[-1] if lines else 'nothing'}"
    )


def _median(values: Sequence[float | None]) -> Any:
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None
