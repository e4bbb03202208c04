"""What a picture gains in all: fewer evaluations times faster ones, the first only where quality was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ddpm_deploy.bench.record import PEER, Json, Report, Row
from ddpm_deploy.bench.report.views import (
    EAGER,
    FULL,
    SAMPLING,
    Against,
    entries,
    groups_of,
    is_trained,
    median_s,
    winners,
)
from ddpm_deploy.bench.report.words import is_number, number
from ddpm_deploy.bench.statistics import Interval


@dataclass(frozen=True)
class Gain:
    """Of a picture by `row` over one by eager diffusers with `baseline_nfe` evaluations.

    faster: at equal evaluations, paired. quality: what both solvers reach, in words. why_not: the reason that fewer
    evaluations are not claimed as a gain, empty where they are. measured: the whole, where the slow way was timed too.
    """

    row: Row
    faster: Against
    baseline_nfe: int | None
    quality: str
    why_not: str
    measured: float | None

    @property
    def fewer(self) -> float | None:
        """The first factor, if it may be claimed."""
        return None if self.why_not or self.baseline_nfe is None else self.baseline_nfe / self.row.nfe

    @property
    def total(self) -> Interval | None:
        """The product of both factors."""
        if self.fewer is None:
            return None
        part = self.faster.speed_up
        return Interval(self.fewer * part.value, self.fewer * part.low, self.fewer * part.high)

    @property
    def in_words(self) -> str:
        """`1000/12 = 83.3x × 6.10x = 508x`, or the second factor alone."""
        speed = f"{number(self.faster.speed_up.value)}x"
        if self.fewer is None or self.total is None:
            return f"{speed} at equal evaluations"
        fewer = f"{self.baseline_nfe}/{self.row.nfe} = {number(self.fewer)}x"
        return f"{fewer} × {speed} = {number(self.total.value)}x"


def gains(report: Report) -> list[Gain]:
    """One for the best row of each sampling group, in full precision and in any, that was timed beside eager."""
    found = []
    for rows in groups_of(report, SAMPLING):
        for best in winners(rows):
            if best.eager is not None:
                found.append(_gain(report, best.row, best.eager))
    return found


def _gain(report: Report, row: Row, faster: Against) -> Gain:
    slow = baseline(report)
    nfe = None if slow is None else int(slow["nfe"])
    ours, theirs, why_not = _qualities(report, row, slow)
    return Gain(row, faster, nfe, _compared(ours, theirs), why_not, _measured(report, row, nfe))


def baseline(report: Report) -> Json | None:
    """The quality of the most evaluations that were judged: what every shorter way is held against."""
    return max(_judged(report), key=lambda entry: entry["nfe"], default=None)


def _qualities(report: Report, row: Row, slow: Json | None) -> tuple[list[Json], list[Json], str]:
    """Quality of this row and of the baseline, and why a gain in evaluations may not be claimed."""
    if not is_trained(report):
        return [], [], "the weights are random, so pictures of few evaluations cannot be judged"
    if slow is None:
        return [], [], "the quality of the pictures was not measured"
    ours = [entry for entry in _judged(report) if _is_of(entry, row)]
    theirs = [e for e in _judged(report) if (e["nfe"], e.get("solver")) == (slow["nfe"], slow.get("solver"))]
    shared = {entry.get("figure") for entry in ours} & {entry.get("figure") for entry in theirs}
    if not shared:
        return [], [], f"the quality of {row.solver} with {row.nfe} evaluations in {row.precision} was not measured"
    if row.nfe >= slow["nfe"]:
        return ours, theirs, "it is what shorter ways are held against"
    return ours, [entry for entry in theirs if entry.get("figure") in shared], ""


def _judged(report: Report) -> list[Json]:
    quality = entries(report, "quality")
    return [entry for entry in quality if is_number(entry.get("nfe")) and is_number(entry.get("value"))]


def _is_of(entry: Json, row: Row) -> bool:
    """In full precision programs draw the same picture, so any of them may have been judged; else only the row's."""
    same = entry.get("solver") == row.solver and entry["nfe"] == row.nfe
    return same and (row.precision == FULL or entry.get("contender") == row.contender)


def _compared(ours: Sequence[Json], theirs: Sequence[Json]) -> str:
    """`mean top probability 0.874, against 0.880 of ddpm with 1000`."""
    said = []
    for entry in ours:
        other = next((one for one in theirs if one.get("figure") == entry.get("figure")), None)
        if other is not None:
            of = f"{number(other['value'])} of {other.get('solver')} with {other['nfe']}"
            said.append(f"{entry.get('figure')} {number(entry['value'])}, against {of}")
    return "; ".join(dict.fromkeys(said))


def _measured(report: Report, row: Row, nfe: int | None) -> float | None:
    """The slow way's time over this row's, where it was timed; in other rounds, so unpaired."""
    slow = [
        other
        for other in report.rows
        if other.kind == PEER and other.suite == SAMPLING and other.contender.startswith(EAGER)
        if (other.nfe, other.batch, other.precision) == (nfe, row.batch, FULL)
    ]
    return min(map(median_s, slow)) / median_s(row) if slow and nfe != row.nfe else None
