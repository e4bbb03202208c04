"""A fleet of engines, simulated event by event from the step times of one.

A machine is the engine with its streams: each call takes the samples that are due first through one row, and lasts as
long as it was measured to last for so many. A request goes to the emptiest stream of two machines drawn at random
(Mitzenmacher 2001), about as a balancer by least connections sends it. Left out: the network between machines, HTTP,
failures, bursts.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.serve.policy import STRETCH

WARM_UP = 5  # the first of so many parts of the requests is not counted

Float = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Pace:
    """How long a call lasts. step_s: (widest + 1,) seconds by how many samples share it; the first is not used.

    alone: latency of a request in an idle machine by its steps, where it is known; else that of so many calls for one.
    streams: of a machine, each of which makes calls that last so long while all do.
    """

    step_s: Float
    alone: Mapping[int, float] = field(default_factory=dict)
    streams: int = 1

    @classmethod
    def between(cls, seconds: Mapping[int, float], alone: Mapping[int, float] | None = None, streams: int = 1) -> Pace:
        """From some sizes; what is between them lasts as long as a line between them says."""
        known = sorted(seconds)
        step_s = np.interp(np.arange(known[-1] + 1), known, [seconds[size] for size in known])
        return cls(step_s, alone or {}, streams)

    @property
    def widest(self) -> int:
        return len(self.step_s) - 1

    @property
    def rows_per_s(self) -> float:
        """At most, of a machine."""
        return self.streams * float(np.max(np.arange(1, self.widest + 1) / self.step_s[1:]))

    def alone_s(self, steps: Ints) -> Float:
        """Latency of requests in an idle machine; between the steps that are known, a step lasts what is between."""
        known = sorted(self.alone) or [1]
        per_step = [self.alone[count] / count for count in known] if self.alone else [float(self.step_s[1])]
        return steps * np.interp(steps, known, per_step)


@dataclass
class Stream:
    """What one holds: (due, request) in the order of the first, and its clock, which counts calls."""

    line: list[tuple[float, int]] = field(default_factory=list)
    batch: list[tuple[float, int]] = field(default_factory=list)
    clock: int = 0


@dataclass(frozen=True)
class Outcome:
    """latency_s, alone_s: (n,) of each request. occupancy: samples of a mean call. busy: share of the time in calls."""

    latency_s: Float
    alone_s: Float
    occupancy: float
    busy: float

    def slowdown(self, percent: float) -> float:
        """A percentile of latency over latency alone, after the fleet has filled."""
        settled = slice(len(self.latency_s) // WARM_UP, None)
        return float(np.percentile((self.latency_s / self.alone_s)[settled], percent))


def arrivals(rate: float, n: int, seed: int) -> Float:
    """(n,) seconds of a Poisson process."""
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, n))


def simulate(
    at: Float, steps: Ints, pace: Pace, machines: int, *, stretch: float = STRETCH, choices: int = 2, seed: int = 0
) -> Outcome:
    """Serve requests that arrive at `at` (n,) and need `steps` (n,) calls each.

    stretch: of the engine's policy; 0 is first come, first served. choices: of how many machines the emptiest is taken.
    """
    fleet = [Stream() for _ in range(machines * pace.streams)]
    drawn = (pace.streams * np.random.default_rng(seed).integers(machines, size=(len(at), choices))).tolist()
    left, done = steps.tolist(), np.zeros(len(at))
    calls: list[tuple[float, int]] = []  # when the call of a stream ends
    total_s = rows = count = 0.0
    seconds, due_in = pace.step_s.tolist(), (stretch * steps).tolist()

    def begin(number: int, now: float) -> None:
        nonlocal total_s, rows, count
        stream = fleet[number]
        stream.batch = stream.line[: pace.widest]
        lasts = seconds[len(stream.batch)]
        heapq.heappush(calls, (now + lasts, number))
        total_s, rows, count = total_s + lasts, rows + len(stream.batch), count + 1

    def end(number: int, now: float) -> None:
        stream = fleet[number]
        stream.clock += 1
        finished = set()
        for _, request in stream.batch:
            left[request] -= 1
            if not left[request]:
                done[request] = now
                finished.add(request)
        if finished:
            stream.line = [each for each in stream.line if each[1] not in finished]
        stream.batch = []
        if stream.line:
            begin(number, now)

    for request, now in enumerate(at.tolist()):
        while calls and calls[0][0] <= now:
            ended, number = heapq.heappop(calls)
            end(number, ended)
        of_those = (first + i for first in drawn[request] for i in range(pace.streams))
        number = min(of_those, key=lambda each: len(fleet[each].line))
        insort(fleet[number].line, (fleet[number].clock + due_in[request], request))
        if not fleet[number].batch:
            begin(number, now)
    while calls:
        ended, number = heapq.heappop(calls)
        end(number, ended)
    span = len(fleet) * float(done.max() - at[0])
    return Outcome(done - at, pace.alone_s(steps), rows / count, total_s / span)
