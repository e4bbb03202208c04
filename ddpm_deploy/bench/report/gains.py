"""What a picture gains in all: fewer evaluations times faster ones, the first only where quality stays equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ddpm_deploy.bench.record import PEER, Json, Report, Row
from ddpm_deploy.bench.report.views import (
    EAGER,
    FULL,
    SAMPLING,
    Against,
    against,
    entries,
    groups_of,
    is_trained,
    median_s,
    winners,
)
from ddpm_deploy.bench.report.words import is_number, number, times, times_interval
from ddpm_deploy.bench.statistics import Interval, paired_difference

EQUAL = 0.05  # in the unit of a figure of quality, of which more is better: pictures that surely lose less are as good


@dataclass(frozen=True)
class Gain:
    """Of a picture by `row` over one by eager diffusers with the evaluations of `slow`, a fact of the quality's.

    faster: at equal evaluations; strongest: the same over the fastest of all peers. quality: what both solvers reach,
    in words. why_not: the reason that fewer evaluations are not claimed as a gain, empty where they are. whole: over
    the slow way, where that was timed in the same rounds; solver: of that what the peer of `faster` gains on the slow
    way, so whole is about solver times faster. All paired.
    """

    row: Row
    faster: Against
    slow: Json | None
    quality: str
    why_not: str
    strongest: Against | None = None
    whole: Against | None = None
    solver: Against | None = None

    @property
    def fewer(self) -> float | None:
        """The first factor, if it may be claimed: as it was timed, or else the ratio of the evaluations."""
        if self.why_not or self.slow is None:
            return None
        return float(self.slow["nfe"] / self.row.nfe) if self.solver is None else self.solver.speed_up.value

    @property
    def total(self) -> Interval | None:
        """What was measured in the same rounds, or else the product of both factors."""
        if self.fewer is None:
            return None
        if self.whole is not None:
            return self.whole.speed_up
        part = self.faster.speed_up
        return Interval(self.fewer * part.value, self.fewer * part.low, self.fewer * part.high)

    @property
    def in_words(self) -> str:
        """`417x [409, 425] ≈ 68.1x × 6.10x` where timed, else `1000/12 = 83.3x × 6.10x = 508x`, or the second alone."""
        speed = times(self.faster.speed_up.value)
        if self.fewer is None or self.total is None or self.slow is None:
            return f"{speed} at equal evaluations"
        if self.whole is not None:
            return f"{times_interval(self.total)} ≈ {times(self.fewer)} × {speed}"
        return f"{self.slow['nfe']}/{self.row.nfe} = {times(self.fewer)} × {speed} = {times(self.total.value)}"

    @property
    def over(self) -> str:
        """What the whole is held against, by its own solver, and whether it was timed beside this row."""
        peer = self.faster.other.contender
        if self.fewer is None or self.slow is None:
            return peer
        if self.whole is not None:
            return f"{self.whole.other.contender} ({_named(self.slow)}), timed in the same rounds"
        return f"{_named(self.slow)} at the pace of {peer}; counted, not timed in the same rounds"


def lost(ours: Json, slow: Json) -> Interval | None:
    """How much worse these pictures are, paired by the seeds of their `samples`; None where they do not pair up."""
    mine, theirs = ours.get("samples") or (), slow.get("samples") or ()
    return paired_difference(theirs, mine) if len(mine) == len(theirs) > 1 else None


def as_good(ours: Json, slow: Json) -> bool:
    """Whether the whole interval of what is lost lies within `EQUAL`."""
    loss = lost(ours, slow)
    return loss is not None and loss.high <= EQUAL


def gains(report: Report) -> list[Gain]:
    """One for the best row of each sampling group, in full precision and in any, that was timed beside eager."""
    found = []
    for rows in groups_of(report, SAMPLING):
        for best in winners(rows):
            if best.eager is not None:
                found.append(_gain(report, best.row, best.eager, best.strongest))
    return found


def baseline(report: Report) -> Json | None:
    """The quality of the most evaluations that were judged: what every shorter way is held against."""
    return max(_judged(report), key=lambda entry: entry["nfe"], default=None)


def _gain(report: Report, row: Row, faster: Against, strongest: Against | None) -> Gain:
    slow = baseline(report)
    quality, why_not = _quality(report, row, slow)
    timed = None if slow is None or why_not else _slow_row(report, row, slow)
    whole, solver = against(row, timed), against(faster.other, timed)
    return Gain(row, faster, slow, quality, why_not, strongest, whole, solver)


def _slow_row(report: Report, row: Row, slow: Json) -> Row | None:
    """Eager diffusers with the baseline's solver and evaluations, where it was timed in the group of this row."""
    found = [
        other
        for other in report.group(row.group)
        if other.kind == PEER and other.contender.startswith(EAGER)
        if (other.solver, other.nfe, other.batch, other.precision) == (slow.get("solver"), slow["nfe"], row.batch, FULL)
    ]
    return min(found, key=median_s, default=None)


def _quality(report: Report, row: Row, slow: Json | None) -> tuple[str, str]:
    """What this row and the baseline reach, and why a gain in evaluations may not be claimed; each may be empty."""
    if not is_trained(report):
        return "", "the weights are random, so pictures of few evaluations cannot be judged"
    if slow is None:
        return "", "the quality of the pictures was not measured"
    pairs = _pairs(report, row, slow)
    if not pairs:
        return "", f"the quality of {row.solver} with {row.nfe} evaluations in {row.precision} was not measured"
    said = "; ".join(dict.fromkeys(f"{ours.get('figure')} {_compared(ours, theirs)}" for ours, theirs in pairs))
    if row.nfe >= slow["nfe"]:
        return said, "it is what shorter ways are held against"
    worse = [(ours, theirs) for ours, theirs in pairs if not as_good(ours, theirs)]
    return said, "; ".join(f"quality {_compared(*pair)} ({pair[0].get('figure')})" for pair in worse)


def _pairs(report: Report, row: Row, slow: Json) -> list[tuple[Json, Json]]:
    """Every figure of this row's pictures beside the same figure of the baseline's."""
    judged = _judged(report)
    theirs = [e for e in judged if (e["nfe"], e.get("solver")) == (slow["nfe"], slow.get("solver"))]
    ours = [entry for entry in judged if _is_of(entry, row)]
    return [(mine, other) for mine in ours for other in theirs if mine.get("figure") == other.get("figure")]


def _judged(report: Report) -> Sequence[Json]:
    quality = entries(report, "quality")
    return [entry for entry in quality if is_number(entry.get("nfe")) and is_number(entry.get("value"))]


def _is_of(entry: Json, row: Row) -> bool:
    """In full precision programs draw the same picture, so any of them may have been judged; else only the row's."""
    same = entry.get("solver") == row.solver and entry["nfe"] == row.nfe
    return same and (row.precision == FULL or entry.get("contender") == row.contender)


def _compared(ours: Json, theirs: Json) -> str:
    """`0.874 against 0.880 of ddpm with 1000 evaluations, 0.006 [-0.02, 0.03] lost`."""
    loss = lost(ours, theirs)
    paired = "not paired by seeds" if loss is None else f"{loss.value:.3f} [{loss.low:.3f}, {loss.high:.3f}] lost"
    return f"{number(ours['value'])} against {number(theirs['value'])} of {_named(theirs)}, {paired}"


def _named(entry: Json) -> str:
    return f"{entry.get('solver')} with {entry['nfe']} evaluations"
