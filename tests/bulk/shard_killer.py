"""Kills jobs that draw shards, goes on, and says what differs from a set that was drawn in peace.

`python tests/bulk/shard_killer.py FOLDER KILLS [SEED]`. Children are forked from this process, which has run no graph
itself and so has no other thread. Two of them draw the same set, by halves, and both die a random while after they
began to draw. What is then said to be there must be so, bit for bit, and still be there after the next kill. Where the
set is complete, the next one begins. Prints one line per kill; exits 1 if a picture ever differed or was lost.

`python tests/bulk/shard_killer.py FOLDER calls` kills one process at each of its calls that touch the folder instead.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ddpm_deploy import Sampler
from ddpm_deploy.bulk import Order, SetFolder, draw_set, verify_set
from ddpm_deploy.bundle import default_bundle, read_bundle

NUM, SHARD_SIZE, PARTS = 160, 16, 2
CALLS = ("open", "os.link", "os.rename", "os.remove", "os.mkdir")


def draw(folder: Path, own: int, parts: int, began: int | None = None, num: int = NUM) -> None:
    """Draw one part of the set; writes a byte into the pipe `began` when it begins to."""
    bundle = read_bundle(default_bundle())
    with Sampler.load(bundle, threads=1, warmup=True) as sampler:
        order = Order(sampler.plan("ddpm", 12), num, shard_size=SHARD_SIZE, batch_size=5)
        if began is not None:
            os.write(began, b"b")
        draw_set(sampler, order, SetFolder(folder), bundle.digest, part=(own, parts))


def fork_drawing(folder: Path, own: int, parts: int = PARTS) -> tuple[int, int]:
    """(process, pipe that tells when it begins to draw)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        draw(folder, own, parts, writer)
        os._exit(0)
    os.close(writer)
    return child, reader


def drawn_in_peace(folder: Path) -> float:
    """Seconds that it took, of one process for all of it."""
    child, pipe = fork_drawing(folder, 1, 1)
    os.read(pipe, 1)
    began = time.perf_counter()
    _, status = os.waitpid(child, 0)
    os.close(pipe)
    if status != 0:
        raise SystemExit("the drawing failed by itself")
    return time.perf_counter() - began


def kill_both(folder: Path, delay_s: float) -> int:
    """Start both halves, kill them after a while; how many still lived."""
    children = [fork_drawing(folder, own + 1) for own in range(PARTS)]
    for _, pipe in children:
        os.read(pipe, 1)
        os.close(pipe)
    time.sleep(delay_s)
    for child, _ in children:
        os.kill(child, signal.SIGKILL)
    return sum(os.WIFSIGNALED(os.waitpid(child, 0)[1]) for child, _ in children)


def die_at_call(folder: Path, number: int) -> None:
    """Draw a set of two shards, and die just before one of the calls that open, link, rename or remove a file in it."""
    calls = itertools.count()

    def hook(event: str, args: tuple[object, ...]) -> None:
        if event in CALLS and any(str(folder) in str(arg) for arg in args) and next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    draw(folder, 1, 1, num=2 * SHARD_SIZE)


def kill_at_every_call(root: Path) -> int:
    """How many calls there were after which going on gave another set."""
    shutil.rmtree(root, ignore_errors=True)
    draw_forked(lambda: draw(root / "peace", 1, 1, num=2 * SHARD_SIZE))
    wrong = 0
    for number in itertools.count():
        folder = root / "set"
        killed = draw_forked(lambda: die_at_call(folder, number))  # noqa: B023
        there = shards_there(folder)
        broken = sum(data != (root / "peace" / name).read_bytes() for name, data in there.items())
        draw_forked(lambda: draw(folder, 1, 1, num=2 * SHARD_SIZE))  # noqa: B023
        wrong += broken + differing(folder, root / "peace")
        print(f"call {number + 1}: {len(there)} shards were there, {wrong} wrong")
        shutil.rmtree(folder)
        if not killed:
            return wrong
    raise AssertionError


def draw_forked(work: Callable[[], None]) -> bool:
    """Whether it was killed."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status not in (0, signal.SIGKILL):
        raise SystemExit("the drawing failed by itself")
    return os.WIFSIGNALED(status)


def shards_there(folder: Path) -> dict[str, bytes]:
    """Every shard that a reader would take for complete."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar")) if Path(f"{path}.json").exists()}


def main(root: Path, kills: int, seed: int) -> int:
    shutil.rmtree(root, ignore_errors=True)
    job_s = drawn_in_peace(root / "peace")
    expected, moments = shards_there(root / "peace"), random.Random(seed)
    folder, before, sets, wrong, alive = root / "set", {}, 0, 0, 0
    print(f"{NUM} pictures in {len(expected)} shards; one process draws them in {job_s:.2f} s; seed {seed}")
    for number in range(kills):
        delay_s = moments.uniform(0, job_s / PARTS)
        alive += kill_both(folder, delay_s)
        there = shards_there(folder)
        wrong += sum(SHARD_SIZE for name in there if there[name] != expected.get(name))
        wrong += sum(SHARD_SIZE for name in before if name not in there)
        print(f"kill {number + 1}, {1000 * delay_s:.0f} ms into drawing: {len(there)} shards are there, {wrong} wrong")
        before = there
        if len(there) == len(expected):
            drawn_in_peace(folder)  # sweeps away what the dead left
            sets, wrong, before = sets + 1, wrong + differing(folder, root / "peace"), {}
            shutil.rmtree(folder)
    drawn_in_peace(folder)
    wrong += differing(folder, root / "peace")
    print(f"{sets + 1} sets; {PARTS * kills} processes, of which {alive} were killed as they drew")
    print(f"{wrong} pictures differ or are missing")
    return int(wrong > 0)


def differing(folder: Path, peace: Path) -> int:
    """How many pictures of a set are not those of the other, once it was gone on with; leftovers count as a shard."""
    faults = verify_set(SetFolder(folder)).faults
    one, other = ({path.name: path.read_bytes() for path in each.iterdir()} for each in (folder, peace))
    return SHARD_SIZE * (len(faults) + sum(one.get(name) != other.get(name) for name in one.keys() | other.keys()))


if __name__ == "__main__":
    if sys.argv[2] == "calls":
        raise SystemExit(int(kill_at_every_call(Path(sys.argv[1])) > 0))
    raise SystemExit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0))
