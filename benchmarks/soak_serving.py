"""The service under mixed load for half an hour: does what it holds stay flat, and is every answer what it should be?

    python -m benchmarks.soak_serving --minutes 30 --into docs/serving.md

Runs `python -m ddpm_deploy.serve` in a process of its own, on the loopback, with clients that ask for pictures of
several plans, follow streams, leave in the middle of both, and send what is wrong. Every picture is compared with the
first that was drawn from its seed. A figure is flat where the 95 % interval of its growth after the warm-up, the first
fifth of the time, ends below what is allowed: 2 % of the memory, 2 file descriptors, 1 thread. Ends with 0, or with 1
where something grew, was lost, or was answered wrongly. While the whole is paused (SIGSTOP), its time stands still.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving.page import into
from benchmarks.serving.process_facts import Growth, Holding, growth, look
from benchmarks.serving.processes import Service, our_service
from benchmarks.serving.soak_client import TIMEOUT_S, Client, Clock, Tally
from ddpm_deploy.bundle import default_bundle

MARK = "python -m benchmarks.soak_serving"
CLIENTS = 6
WARM_UP = 5  # the first of so many parts of the time
MEMORY, FILES, THREADS = 0.02, 2.0, 1.0  # what may be gained and is still called flat


@dataclass(frozen=True)
class Result:
    """Of a soak. idle_before, idle_after: what the service held without load."""

    minutes: float
    looks: Sequence[Holding]
    idle_before: Holding
    idle_after: Holding
    tally: Tally
    pauses: int

    @property
    def growths(self) -> dict[str, Growth]:
        """After the warm-up."""
        looks = [each for each in self.looks if each.at_s >= self.looks[-1].at_s / WARM_UP]
        at = [each.at_s for each in looks]
        rss = [each.rss / 2**20 for each in looks]
        return {
            "memory, MiB": growth(at, rss, MEMORY * rss[0]),
            "file descriptors": growth(at, [each.files for each in looks], FILES),
            "threads": growth(at, [each.threads for each in looks], THREADS),
        }

    @property
    def ok(self) -> bool:
        """Whether all is flat, no file was left open, and nothing was answered wrongly."""
        left_open = self.idle_after.files - self.idle_before.files
        return all(g.flat for g in self.growths.values()) and left_open <= FILES and not self.tally.wrong

    def table(self) -> str:
        """As Markdown."""
        lines = ["| | first | last | growth [95 %] | allowed | |", "|---|---:|---:|---:|---:|---|"]
        for name, g in self.growths.items():
            verdict = "flat" if g.flat else "**not flat**"
            interval = f"{g.growth:+.2f} [{g.low:+.2f}, {g.high:+.2f}]"
            lines.append(f"| {name} | {g.first:.4g} | {g.last:.4g} | {interval} | {g.allowed:.3g} | {verdict} |")
        done = ", ".join(f"{count:,} x {what}" for what, count in sorted(self.tally.counts.items()))
        wrong = "; ".join(f"{count} x {what}" for what, count in self.tally.wrong.items()) or "nothing"
        return "\n".join([
            *lines, "",
            f"{self.minutes:.1f} minutes, {len(self.looks):,} looks, {self.pauses} pauses. Answered: {done}. "
            f"Open files without load: {self.idle_before.files} before, {self.idle_after.files} after. "
            f"Wrong: {wrong}.",
        ])  # fmt: skip


def soak(
    seconds: float, *, bundle: Path | None = None, threads: int = 2, every_s: float = 1.0, rest_s: float = 0.15
) -> Result:
    """Load a service for so many seconds of running time. every_s: between looks. rest_s: of a client, at mean."""
    tally, stop = Tally(), threading.Event()
    with our_service(bundle or Path(default_bundle()), threads, "--capacity", "64") as service:
        clock = Clock()
        clients = [Client(service, tally, clock, rest_s, seed) for seed in range(CLIENTS)]
        for _ in range(3):  # what is made once is made before the first idle look
            clients[0].do_everything()
        idle_before = _idle(service)
        clock.restart()
        running = [threading.Thread(target=client.run, args=(stop,), daemon=True) for client in clients]
        for thread in running:
            thread.start()
        looks = _watch(service, clock, seconds, every_s)
        stop.set()
        for thread in running:
            thread.join(2 * TIMEOUT_S)
        idle_after = _idle(service)
    return Result(clock.now / 60, looks, idle_before, idle_after, tally, clock.pauses)


def _watch(service: Service, clock: Clock, seconds: float, every_s: float) -> list[Holding]:
    looks = []
    while clock.now < seconds:
        time.sleep(every_s)
        clock.tick(every_s)
        looks.append(look(service.process.pid, clock.now))
    return looks


def _idle(service: Service) -> Holding:
    """What it holds a moment after the last request."""
    time.sleep(1.0)
    return look(service.process.pid, 0.0)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--minutes", type=float, default=30.0, help="of running time; a tenth of a minute is the least")
    add("--bundle", type=Path, help="default: the digits model of this package")
    add("--threads", type=int, default=2, help="of the service")
    add("--into", type=Path, metavar="PAGE", help="write the table there, between its marks")
    args = parser.parse_args(argv)
    if not 0.1 <= args.minutes < float("inf"):
        parser.error(f"--minutes: got {args.minutes:g}, expected at least 0.1")
    result = soak(60 * args.minutes, bundle=args.bundle, threads=args.threads)
    print(result.table())
    if args.into is not None:
        into(args.into, MARK, result.table())
    return 0 if result.ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
