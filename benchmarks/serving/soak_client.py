"""Clients of a service under a long load: what they ask for, what they saw, and when its time stood still."""

from __future__ import annotations

import hashlib
import http.client
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from benchmarks.serving.processes import Service, body

SEEDS = 40
PAUSED_S = 2.0  # a look that comes so much too late says that the process was stopped
EXCUSED_S = 5.0  # after a pause: requests may have been timed out by it
TIMEOUT_S = 60.0
HEADERS = {"Content-Type": "application/json"}
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

    def do_everything(self) -> None:
        """Each act once."""
        for act, _ in self._acts:
            act()

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
