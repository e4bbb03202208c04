"""A control loop: one call is due at every tick of a fixed rate, as for a robot's policy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ddpm_deploy.bench.measure import Contender

SLICES = 5
WARMUP_CALLS = 5

Clock = Callable[[], float]


@dataclass(frozen=True)
class Deadline:
    """Of one contender. response_s: (n,) from the tick at which a call was due to its end. missed: not done in time."""

    response_s: list[float]
    period_s: float

    @property
    def missed(self) -> int:
        """Calls that were not done when the next was due."""
        return sum(response > self.period_s for response in self.response_s)


def keep_pace(
    contenders: Sequence[Contender],
    period_s: float,
    ticks: int,
    *,
    clock: Clock = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> dict[str, Deadline]:
    """Call every contender at `ticks` ticks, in `SLICES` turns, so that drift of the machine reaches all alike.

    A response counts from the tick, not from the start of the call: a call that comes late because the one before was
    slow is late (no coordinated omission). After a slow call the loop skips the ticks that it missed, as a robot would
    have to, and counts each of them as missed, with the time that the next call took to come.
    """
    responses: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for contender in contenders:
        for _ in range(WARMUP_CALLS):
            contender.seconds(clock)
    for turn in range(SLICES):
        count = ticks * (turn + 1) // SLICES - ticks * turn // SLICES
        for contender in contenders if turn % 2 else reversed(contenders):
            responses[contender.name] += _turn(contender, period_s, count, clock, sleep)
    return {name: Deadline(values, period_s) for name, values in responses.items()}


def _turn(
    contender: Contender, period_s: float, count: int, clock: Clock, sleep: Callable[[float], object]
) -> list[float]:
    """One after another, until `count` ticks are over."""
    contender.seconds(clock)  # the neighbour's turn left its traces
    began = clock()
    responses: list[float] = []
    while len(responses) < count:
        due = began + len(responses) * period_s
        wait = due - clock()
        if wait > 0:
            sleep(wait)
        contender.seconds(clock)
        done = clock()
        passed = min(count - len(responses), max(1, int((done - due) // period_s)))
        responses += [done - due - k * period_s for k in range(passed)]  # ticks that went by meanwhile were due as well
    return responses
