"""What a group will take, before it is begun: from what its contenders took with another solver, or the reference."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from benchmarks.gpu.asked import Group
from ddpm_deploy.bench.measure import Effort, round_seconds

CONTENDERS = 5  # of a group of which nothing is known, each as slow as the reference
DRAWS = 2  # of a contender before it is timed: one is judged, one says how long a round is
REFERENCES = 2  # trajectories that a group is judged by: of our plan, and of the peers'


class Pace:
    """Seconds of one evaluation, by model, batch and precision, of every contender that was timed.

    reference_s, everywhere: of one evaluation by the reference at the group's batch, for what is not known yet.
    """

    def __init__(self, effort: Callable[[float], Effort]) -> None:
        """effort: how a group is timed whose rounds take so many seconds."""
        self._effort = effort
        self._known: defaultdict[tuple[str, int, str], dict[str, float]] = defaultdict(dict)

    def learn(self, group: Group, contender: str, seconds: float) -> None:
        """seconds: of a whole sampling."""
        self._known[_key(group)][contender] = seconds / group.steps

    def draws_s(self, group: Group, contender: str, reference_s: float) -> float:
        """Of what one contender draws before it is timed."""
        return DRAWS * group.steps * self._known[_key(group)].get(contender, reference_s)

    def round_s(self, group: Group, reference_s: float) -> float:
        """Of one round of all contenders."""
        return round_seconds(self._calls_s(group, reference_s))

    def timing_s(self, group: Group, reference_s: float) -> float:
        """Of all its rounds, at most."""
        round_s = self.round_s(group, reference_s)
        return longest_s(self._effort(round_s), round_s)

    def group_s(self, group: Group, reference_s: float) -> float:
        """Of the whole group beside what it takes to open its contenders."""
        judging_s = REFERENCES * group.steps * reference_s + DRAWS * sum(self._calls_s(group, reference_s))
        return judging_s + self.timing_s(group, reference_s)

    def _calls_s(self, group: Group, reference_s: float) -> list[float]:
        """Of a sampling by each contender."""
        known = self._known[_key(group)]
        return [group.steps * seconds for seconds in known.values() or [reference_s] * CONTENDERS]


def longest_s(effort: Effort, round_s: float) -> float:
    """How long rounds of so many seconds go on at most, those of the warm-up included."""
    timed_s = max(effort.min_rounds * round_s, min(effort.budget_s + round_s, effort.max_rounds * round_s))
    return timed_s + effort.max_warmup * round_s


def _key(group: Group) -> tuple[str, int, str]:
    return group.model, group.batch, group.precision
