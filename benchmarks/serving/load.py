"""Open-loop load: requests arrive by a trace, whether or not the last ones are answered.

Latency counts from the moment at which a request was to arrive, so that a generator which falls behind hides nothing.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

LIMIT = 10.0  # times its latency alone: what a request may take
LATE = 0.01  # the share of requests that may take longer
LOOK_EVERY = 16  # arrivals, at whether a trial is lost
START_S = 0.05
GRAIN_S = 0.001  # of a flood: who would wake for each request would take a core from the server
GIVE_UP_S = 300.0
RUN_IN = 3  # times as many as are under way at once

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Kind:
    """What a request asks for."""

    solver: str
    steps: int


MIX = (Kind("unipc", 4), Kind("unipc", 12), Kind("ddim", 50))
MEAN_STEPS = sum(kind.steps for kind in MIX) / len(MIX)


class Answer(Protocol):
    """What a contender returns at once: a future, or what looks like one."""

    def add_done_callback(self, function: Callable[[Any], object]) -> Any: ...

    def cancel(self) -> bool: ...

    def cancelled(self) -> bool: ...

    def done(self) -> bool: ...

    def result(self, timeout: float | None = None) -> Any: ...


Submit = Callable[[Kind, int], Answer]


@dataclass(frozen=True)
class Trace:
    """Arrivals of a Poisson process at exactly one a second, and of which kind each is; all kinds as often.

    at: (n,) seconds, ascending. kinds: (n,) indices of MIX.
    """

    at: Float
    kinds: NDArray[np.int64]

    @classmethod
    def drawn(cls, n: int, seed: int) -> Trace:
        """A trace of n arrivals."""
        rng = np.random.default_rng(seed)
        at = np.cumsum(rng.exponential(size=n))
        return cls(at * (n / at[-1]), rng.permutation(np.arange(n) % len(MIX)))

    def of_kinds(self, per_kind: Sequence[float]) -> Float:
        """(n,) each request's own of numbers by kind."""
        return np.asarray(per_kind)[self.kinds]


@dataclass(frozen=True)
class Trial:
    """What came of a trace at a rate. latency_s: (n,), infinite where no answer came. lost: whether it was stopped as
    too many were late. rate: requests a second."""

    rate: float
    latency_s: Float
    alone_s: Float
    kinds: NDArray[np.int64]
    seconds: float
    lost: bool = False

    @property
    def slowdown(self) -> Float:
        """(n,) times each request's latency alone."""
        return self.latency_s / self.alone_s

    @property
    def late(self) -> float:
        """The share that took longer than the limit."""
        return float(np.mean(self.slowdown > LIMIT))

    @property
    def holds(self) -> bool:
        """Whether the 99th percentile of the slowdown is within the limit."""
        return not self.lost and self.late <= LATE

    def p99_s(self, kind: int) -> float:
        """Of the requests of a kind."""
        return float(np.percentile(self.latency_s[self.kinds == kind], 99))

    @property
    def in_time_per_s(self) -> float:
        """Answers within the limit, of each second from the first arrival to the last answer."""
        return float(np.sum(self.slowdown <= LIMIT)) / self.seconds

    def facts(self) -> dict[str, Any]:
        """The trial in numbers, for a report."""
        slow = np.minimum(self.slowdown, 1e9)
        return {
            "rate": self.rate,
            "n": len(self.kinds),
            "stopped": self.lost,
            "late": self.late,
            "p50": float(np.percentile(slow, 50)),
            "p99": float(np.percentile(slow, 99)),
        }


@dataclass
class _Answers:
    """When each request was answered, on the clock of `time.perf_counter`."""

    at: Float
    done: Float
    errors: dict[int, Exception] = field(default_factory=dict)

    def note(self, i: int, answer: Answer) -> None:
        """An answer is here; called in whatever thread finishes it."""
        now = time.perf_counter()
        if answer.cancelled():
            return
        try:
            answer.result(0)
        except Exception as error:
            self.errors[i] = error
        else:
            self.done[i] = now


@contextmanager
def without_collector() -> Iterator[None]:
    """Keep Python's garbage collector, which looks through all that benchmarks import, out of a trial."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def offer(submit: Submit, trace: Trace, rate: float, alone_s: Sequence[float], *, stop_when_lost: bool = True) -> Trial:
    """Let the requests of a trace arrive at a rate, and wait for their answers.

    alone_s: latency of each kind in an idle contender. stop_when_lost: as soon as the limit cannot be held any more.
    """
    with without_collector():
        return _offer(submit, trace, rate, trace.of_kinds(alone_s), stop_when_lost)


def _offer(submit: Submit, trace: Trace, rate: float, own_s: Float, stop_when_lost: bool) -> Trial:
    begin = time.perf_counter() + START_S
    answers = _Answers(begin + trace.at / rate, np.full(len(trace.at), np.inf))
    handles: list[Answer] = []
    lost = False
    for i, kind in enumerate(trace.kinds):
        pause = answers.at[i] - time.perf_counter()
        if pause > 0:
            time.sleep(pause)
        handle = submit(MIX[kind], i)
        handle.add_done_callback(partial(answers.note, i))
        handles.append(handle)
        lost = stop_when_lost and i % LOOK_EVERY == 0 and _is_lost(answers, own_s)
        if lost:
            break
    lost = _await(handles, answers, own_s, stop_when_lost) or lost
    if answers.errors:
        raise RuntimeError(f"load: {len(answers.errors)} requests failed") from next(iter(answers.errors.values()))
    finished = answers.done[np.isfinite(answers.done)]
    seconds = float(finished.max() - begin) if finished.size else 1 / rate
    return Trial(rate, answers.done - answers.at, own_s, trace.kinds, seconds, lost)


def _is_lost(answers: _Answers, own_s: Float) -> bool:
    """Whether more requests are late already than may be in all; those not answered yet count as they stand."""
    waited = np.minimum(answers.done, time.perf_counter()) - answers.at
    return bool(np.sum(waited > LIMIT * own_s) > LATE * len(own_s))


def _await(handles: Sequence[Answer], answers: _Answers, own_s: Float, stop_when_lost: bool) -> bool:
    """Wait for all answers; where the trial is lost, cancel the rest and wait for what is under way. Whether it was."""
    lost, until = False, time.perf_counter() + GIVE_UP_S
    while time.perf_counter() < until:
        open_ = [handle for handle in handles if not handle.done()]
        if not open_:
            return lost
        if stop_when_lost and not lost and _is_lost(answers, own_s):
            lost = True
            for handle in open_:
                handle.cancel()
        time.sleep(0.01)
    raise RuntimeError(f"load: not answered within {GIVE_UP_S:g} s; the contender hangs")


def in_closed_loop(submit: Submit, at_once: int, count: int) -> float:
    """Requests a second with so many always under way, over `count` of them; all kinds as often.

    Those that come first do not count: until they have made room, too few of the long kinds are under way.
    """
    first, total = RUN_IN * at_once, (RUN_IN + 1) * at_once + count
    kinds = np.random.default_rng(0).permutation(np.arange(total) % len(MIX)).tolist()
    tickets, answered = iter(enumerate(kinds)), iter(range(1, total + 1))
    times: dict[int, float] = {}
    over: Future[None] = Future()

    def begin_next() -> None:
        ticket = next(tickets, None)
        if ticket is not None:
            number, kind = ticket
            submit(MIX[kind], number).add_done_callback(end_one)

    def end_one(_: Any) -> None:
        number = next(answered)
        if number in (first, first + count):
            times[number] = time.perf_counter()
        if number == total:
            over.set_result(None)
        begin_next()

    for _ in range(at_once):
        begin_next()
    over.result(GIVE_UP_S)
    return count / (times[first + count] - times[first])


@dataclass(frozen=True)
class Flood:
    """What came of more requests than can be answered. refused_s: how long each refusal took. seconds: of the flood.

    in_time, late: of those accepted. rate: requests a second that arrived.
    """

    rate: float
    in_time: int
    late: int
    refused_s: Float
    seconds: float

    @property
    def in_time_per_s(self) -> float:
        """Answers within the limit a second."""
        return self.in_time / self.seconds


def flood(submit: Submit, refusal: type[Exception], trace: Trace, rate: float, alone_s: Sequence[float]) -> Flood:
    """Let requests arrive at a rate, some of which are refused by an exception."""
    with without_collector():
        return _flood(submit, refusal, trace, rate, trace.of_kinds(alone_s))


def _flood(submit: Submit, refusal: type[Exception], trace: Trace, rate: float, own_s: Float) -> Flood:
    begin = time.perf_counter() + START_S
    answers = _Answers(begin + trace.at / rate, np.full(len(trace.at), np.inf))
    accepted: dict[int, Answer] = {}
    refused: list[float] = []
    for i, kind in enumerate(trace.kinds):
        pause = answers.at[i] - time.perf_counter()
        if pause > 0:
            time.sleep(max(pause, GRAIN_S))
        asked = time.perf_counter()
        try:
            accepted[i] = submit(MIX[kind], i)
        except refusal:
            refused.append(time.perf_counter() - asked)
        else:
            accepted[i].add_done_callback(partial(answers.note, i))
    _await(list(accepted.values()), answers, own_s, stop_when_lost=False)
    if answers.errors:
        raise RuntimeError(f"load: {len(answers.errors)} requests failed") from next(iter(answers.errors.values()))
    places = list(accepted)
    in_time = int(np.sum((answers.done - answers.at <= LIMIT * own_s)[places]))
    seconds = float(answers.done[places].max() - begin)
    return Flood(rate, in_time, len(places) - in_time, np.array(refused), seconds)
