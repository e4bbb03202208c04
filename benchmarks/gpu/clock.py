"""The time of a run: what is left of it, and what things that were done before have cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

from ddpm_deploy.errors import DdpmDeployError


class OutOfTime(DdpmDeployError):
    """Something that does not fit into the time that is left; the message is the reason, for a report."""


class Clock:
    """Counts down from `seconds`; a deadline, not a stop-watch: what runs already is not interrupted."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._ends = now() + seconds
        self._costs: dict[Hashable, float] = {}

    @property
    def left_s(self) -> float:
        """Seconds that are left; negative when it is over."""
        return self._ends - self._now()

    def require(self, seconds: float, part: float = 1.0) -> None:
        """OutOfTime where this would take more than so large a part of the time that is left."""
        left_s = max(0.0, self.left_s)
        if seconds > part * left_s:
            share = "" if part == 1 else f", of which it may take {part:.0%}"
            raise OutOfTime(f"would take about {seconds:.0f} s, with {left_s:.0f} s left{share}; give more --minutes")

    @contextmanager
    def spending(self, what: Hashable, guess_s: float, part: float = 1.0, keep_s: float = 0.0) -> Iterator[None]:
        """Do something that is as long as it was the last time, or else as `guess_s`; OutOfTime instead if too long.

        keep_s: what has to be left after it.
        """
        cost_s = self._costs.get(what, guess_s)
        self.require(cost_s, part)
        self.require(cost_s + keep_s)
        began = self._now()
        try:
            yield
        finally:
            self._costs[what] = self._now() - began
