"""Kills whole exports while they write their bundle, and says after each what a reader finds.

`python tests/trust/export_killer.py FOLDER KILLS [SEED]`. Children are forked from this process, which has run no graph
itself and so has no other thread. Each exports the same network under another name in place of the bundle that is
there; it tells through a pipe when it begins to write, and dies a random while later. Prints one line per kill, then
what was found how often; exits 1 if that was ever anything but the old bundle or the new one.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

import hostile

from ddpm_deploy.bundle import read_bundle
from ddpm_deploy.errors import BundleError
from ddpm_deploy.export import pipeline
from ddpm_deploy.export.__main__ import main as export

OLD, NEW = "old", "new"
TARGETS = ("--target", "onnxruntime-cpu,tensorrt", "--batches", "1")
LATEST = 1.2  # of the time that writing takes


def run_export(folder: Path, name: str) -> int:
    with contextlib.redirect_stdout(None):
        return export([str(folder / "m.onnx"), *hostile.SAID, *TARGETS, "--name", name, "--out", str(folder / "b")])


def found(folder: Path) -> str:
    try:
        return read_bundle(folder / "b").manifest.model.name
    except BundleError as error:
        return f"broken: {error}"


def tell(pipe: int) -> None:
    """Let the export write a byte into the pipe before and after it writes its bundle."""
    write = pipeline.write_bundle

    def told(*args: object) -> object:
        os.write(pipe, b"w")
        bundle = write(*args)  # type: ignore[arg-type]
        os.write(pipe, b"d")
        return bundle

    pipeline.write_bundle = told  # type: ignore[assignment]


def fork_export(folder: Path, name: str) -> tuple[int, int]:
    """(process, pipe that tells when it begins and ends to write)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        tell(writer)
        os._exit(run_export(folder, name))
    os.close(writer)
    return child, reader


def time_to_write(folder: Path, name: str) -> float:
    child, pipe = fork_export(folder, name)
    os.read(pipe, 1)
    start = time.perf_counter()
    os.read(pipe, 1)
    seconds = time.perf_counter() - start
    os.close(pipe)
    if os.waitpid(child, 0)[1] != 0:
        raise SystemExit("the export failed by itself")
    return seconds


def kill_one(folder: Path, delay_s: float, before: str) -> tuple[str, bool]:
    """(what is there afterwards, whether the export still lived)."""
    child, pipe = fork_export(folder, NEW if before == OLD else OLD)
    os.read(pipe, 1)
    time.sleep(delay_s)
    os.kill(child, signal.SIGKILL)
    os.close(pipe)
    _, status = os.waitpid(child, 0)
    return found(folder), os.WIFSIGNALED(status)


def main(folder: Path, kills: int, seed: int) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "m.onnx").write_bytes(hostile.tiny_onnx().SerializeToString())
    write_s = statistics.median(time_to_write(folder, name) for name in (NEW, OLD, NEW, NEW, OLD))
    moments, counts, began = random.Random(seed), Counter[str](), time.perf_counter()
    before, unfinished = OLD, 0
    for number in range(kills):
        delay_s = moments.uniform(0, LATEST * write_s)
        after, killed = kill_one(folder, delay_s, before)
        outcome = after if after not in (OLD, NEW) else "bundle as before" if after == before else "new bundle"
        counts[f"{outcome}, {'killed in mid-export' if killed else 'export had just ended'}"] += 1
        print(f"kill {number + 1}, {1000 * delay_s:.1f} ms into writing: {outcome}")
        before = after if after in (OLD, NEW) else OLD
        unfinished += bool(list(folder.glob(".b.*")))
    time_to_write(folder, OLD)
    left = len(list(folder.glob(".b.*")))
    print(f"\n{kills} kills in {time.perf_counter() - began:.0f} s; writing takes {1000 * write_s:.1f} ms; seed {seed}")
    for outcome, count in sorted(counts.items()):
        print(f"{count:6d}  {outcome}")
    broken = sum(count for outcome, count in counts.items() if "broken" in outcome)
    print(f"{unfinished:6d}  left an unfinished folder beside the bundle; {left} are there after one more export")
    print(f"{broken:6d}  broken bundles")
    return int(broken + left > 0)


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0))
