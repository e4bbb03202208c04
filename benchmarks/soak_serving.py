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
import hashlib
import http.client
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.serving.page import into
from benchmarks.serving.process_facts import Growth, Holding, growth, look
from benchmarks.serving.processes import Service, body, our_service
from ddpm_deploy.bundle import default_bundle

MARK = "python -m benchmarks.soak_serving"
CLIENTS, SEEDS = 6, 40
WARM_UP = 5  # the first of so many parts of the time
MEMORY, FILES, THREADS = 0.02, 2.0, 1.0  # what may be gained and is still called flat
PAUSED_S = 2.0  # a look that comes so much too late says that the process was stopped
EXCUSED_S = 5.0  # after a pause: requests may have been timed out by it
TIMEOUT_S = 60.0
BAD: tuple[tuple[bytes, int], ...] = (
    (b"{", 400),
    (b"[" * 2000, 400),
    (b'{"n": 0}', 400),
    (b'{"n": 100000}', 400),
    (b'{"steps": -1}', 400),
    (b'{"guidance": NaN}', 400),
    (b'{"seed": 1e999}', 400),
    (b'{"nonsense": 1}', 400),
    (b'{"solver": "none"}', 400),
    (b'{"prompt": "' + b"x" * 100_000 + b'"}', 413),
)


@dataclass
class Tally:
    """What came of the requests. wrong: what should not have been, in words."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    pictures: dict[tuple[int, int], str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def blame(self, what: str) -> None:
        with self._lock:
            self.wrong[what] += 1

    def compare(self, kind: int, seed: int, picture: str) -> None:
        """Hold a picture against the first of its kind and seed."""
        digest = hashlib.sha256(picture.encode()).hexdigest()
        with self._lock:
            if self.pictures.setdefault((kind, seed), digest) != digest:
                self.wrong[f"a picture of kind {kind}, seed {seed} differs from the first"] += 1


class Clock:
    """Running time: what passes while the process is stopped does not count."""

    def __init__(self) -> None:
        self.pauses = 0
        self._excused_until = -1.0
        self.restart()

    def restart(self) -> None:
        """Begin at 0."""
        self._last, self.now = time.monotonic(), 0.0

    def tick(self, expected_s: float) -> None:
        """Called about every `expected_s` seconds."""
        now = time.monotonic()
        passed, self._last = now - self._last, now
        if passed > expected_s + PAUSED_S:
            self.pauses += 1
            self._excused_until = now + EXCUSED_S
            passed = expected_s
        self.now += passed

    @property
    def excused(self) -> bool:
        """Whether the process was stopped just now, so that what failed may have failed by that."""
        now = time.monotonic()
        return now < self._excused_until or now - self._last > PAUSED_S


class Client:
    """Asks for something, sees what comes, and rests; until it is told to stop."""

    def __init__(self, service: Service, tally: Tally, clock: Clock, rest_s: float, seed: int) -> None:
        self._service, self._tally, self._clock, self._rest_s = service, tally, clock, rest_s
        self._random = random.Random(seed)
        self._acts: tuple[tuple[Callable[[], None], int], ...] = (
            (self._picture, 50), (self._stream, 12), (self._leave_stream, 8), (self._leave, 10), (self._bad, 15),
            (self._look_in, 5),
        )  # fmt: skip

    def run(self, stop: threading.Event) -> None:
        """Until stopped."""
        acts, weights = zip(*self._acts, strict=True)
        while not stop.is_set():
            (act,) = self._random.choices(acts, weights)
            try:
                act()
            except (OSError, http.client.HTTPException) as error:
                if self._clock.excused:
                    self._tally.count("lost in a pause")
                else:
                    self._tally.blame(f"{act.__name__.strip('_')}: {type(error).__name__}: {error}")
            stop.wait(self._random.expovariate(1 / self._rest_s))

    def _picture(self) -> None:
        kind, seed = self._drawn()
        status, answer = self._ask(json.dumps(body(kind, seed)).encode())
        if self._expect("picture", status, 200):
            self._tally.compare(kind, seed, json.loads(answer)["data"][0]["b64_json"])

    def _stream(self) -> None:
        kind, seed = self._drawn()
        status, answer = self._ask(self._streamed(kind, seed))
        if not self._expect("stream", status, 200):
            return
        done = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith(b"data: {")]
        if done and "b64_json" in done[-1]:
            self._tally.compare(kind, seed, done[-1]["b64_json"])
        else:
            self._tally.blame("a stream ended without its picture")

    def _leave_stream(self) -> None:
        connection = self._connect()
        with suppress(TimeoutError):
            connection.request("POST", self._service.path, self._streamed(*self._drawn()), HEADERS)
            connection.getresponse().read(self._random.randrange(1, 2000))
        connection.close()
        self._tally.count("stream left")

    def _leave(self) -> None:
        connection = self._connect()
        connection.request("POST", self._service.path, json.dumps(body(2, self._random.randrange(SEEDS))), HEADERS)
        time.sleep(self._random.uniform(0, 0.02))
        connection.close()
        self._tally.count("request left")

    def _bad(self) -> None:
        data, expected = self._random.choice(BAD)
        self._expect("bad request", self._ask(data)[0], expected)

    def _look_in(self) -> None:
        path = self._random.choice(("/metrics", "/healthz", "/readyz", "/openapi.json"))
        connection = self._connect()
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
            self._expect(path, answer.status, 200)
        finally:
            connection.close()

    def _drawn(self) -> tuple[int, int]:
        return self._random.randrange(3), self._random.randrange(SEEDS)

    def _streamed(self, kind: int, seed: int) -> bytes:
        return json.dumps({**body(kind, seed), "stream": True, "partial_images": 2}).encode()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._service.port, timeout=TIMEOUT_S)

    def _ask(self, data: bytes) -> tuple[int, bytes]:
        connection = self._connect()
        try:
            connection.request("POST", self._service.path, data, HEADERS)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _expect(self, what: str, status: int, expected: int) -> bool:
        if status == expected:
            self._tally.count(what)
        elif self._clock.excused:
            self._tally.count("lost in a pause")
        else:
            self._tally.blame(f"{what}: status {status}, expected {expected}")
        return status == expected


HEADERS = {"Content-Type": "application/json"}


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
        first = clients[0]
        for _ in range(3):  # what is made once is made before the first idle look
            for act, _weight in first._acts:
                act()
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
