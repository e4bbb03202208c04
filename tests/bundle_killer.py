"""Run by test_bundle_write.py: kills writers, and says after each what a reader finds.

Children are forked from this small process, which has no other thread, so that a kill costs milliseconds.
Prints one line per kill: the point of the kill, then `old`, `new`, or the reader's error.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from bundle_samples import sample_files, sample_manifest

from ddpm_deploy.bundle import read_bundle, write_bundle
from ddpm_deploy.errors import BundleError

FILES = {name: data * 2000 for name, data in sample_files().items()}


def write(out: Path, name: str) -> None:
    write_bundle(out, sample_manifest(name), FILES)


def found(out: Path) -> str:
    try:
        return read_bundle(out).manifest.model.name
    except BundleError as error:
        return f"broken: {error}"


def die_at_event(number: int, out: Path) -> None:
    """Write the new bundle, and die just before the given audit event (file and folder calls raise them)."""
    events = itertools.count()

    def hook(event: str, args: object) -> None:
        if event.partition(".")[0] in ("open", "os", "shutil", "ctypes", "fcntl") and next(events) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    write(out, "new")


def write_for_ever(out: Path) -> None:
    first = "old" if found(out) == "new" else "new"
    for name in itertools.cycle((first, "old" if first == "new" else "new")):
        write(out, name)


def kill_at_every_event(out: Path) -> None:
    for number in itertools.count():
        write(out, "old")
        child = os.fork()
        if child == 0:
            die_at_event(number, out)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(f"event {number}: {found(out)}")
        if not os.WIFSIGNALED(status):
            return


def kill_at_random_moments(out: Path, kills: int, seed: int) -> Counter[str]:
    """How often each was found."""
    moments, counts = random.Random(seed), Counter[str]()
    start = time.perf_counter()
    for name in ("new", "old", "new", "old"):
        write(out, name)
    write_s = (time.perf_counter() - start) / 4
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            write_for_ever(out)
        delay_s = moments.uniform(0, 3 * write_s)
        time.sleep(delay_s)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        print(f"after {delay_s * 1000:.1f} ms: {(outcome := found(out))}")
        counts[outcome] += 1
    return counts


if __name__ == "__main__":
    target = Path(sys.argv[2])
    target.parent.mkdir(parents=True, exist_ok=True)
    write(target, "old")
    if sys.argv[1] == "events":
        kill_at_every_event(target)
    else:
        kills = int(sys.argv[4]) if len(sys.argv) > 4 else 30
        counts = kill_at_random_moments(target, kills, seed=int(sys.argv[3]))
        if kills > 30:
            print("\n".join(["", *(f"{count:6d}  {outcome}" for outcome, count in sorted(counts.items()))]))
            raise SystemExit(int(bool(set(counts) - {"old", "new"})))
