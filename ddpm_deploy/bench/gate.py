"""Whether a new report is slower than an old one: every row of ours against the peers of its group, its anchor.

The peers ran in the same rounds, so the speed of the machine cancels, within a report by pairing and between reports
in the ratio of ratios. Several peers are one anchor together, by the geometric mean of their times in each round: to
pick one of them by its data would make the intervals too narrow. A row is worse where the ratio exceeds 1 + tolerance
and its interval lies above 1. So is a contender whose rows, each too noisy to say, are slower together: the mean of
their logarithms, weighted by precision.

Intervals are as wide as those of both reports make them, and wider where twins differ by more than their own
intervals explain, since a second run then would as well. They allow for all that is compared (Bonferroni), so that many
rows do not make many false alarms: `FAMILY` is for all together.

Rows of the suite "deadline" are left out: their contenders took turns, so a tick of one belongs to none of another.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

from ddpm_deploy.bench.record import OWN, PEER, Report, Row
from ddpm_deploy.bench.report.views import DEADLINE, in_same_rounds, twins
from ddpm_deploy.bench.report.words import flat
from ddpm_deploy.bench.statistics import CONFIDENCE, Interval, paired_ratio

TOLERANCE = 0.05
TINY = 1e-12
WORSE, BETTER, SAME, NOISY = "worse", "better", "same", "too noisy to say"
GONE, SKIPPED, NEW, NO_ANCHOR = "gone", "skipped", "new", "no anchor"
FAILING = (WORSE, GONE)
COMPARED = (WORSE, BETTER, SAME, NOISY)
FAMILY = 0.90  # of all intervals together
PASSING = ("load average", "cpu, clock mhz", "git")  # differ from run to run, and mean nothing


@dataclass(frozen=True)
class LogRatio:
    """The logarithm of a change, and the variance of that."""

    value: float
    variance: float

    def interval(self, width: float) -> Interval:
        """The change itself, `width` standard deviations to both sides."""
        edges = (self.value, self.value - width * self.deviation, self.value + width * self.deviation)
        return Interval(*map(math.exp, edges))

    @property
    def deviation(self) -> float:
        """Its standard deviation."""
        return math.sqrt(self.variance)


@dataclass(frozen=True)
class Pair:
    """A row of ours and the peers that both reports timed beside it: its times over theirs."""

    row: Row
    anchors: tuple[str, ...]
    old: Interval
    new: Interval

    @property
    def change(self) -> LogRatio:
        """New over old; both runs are independent, so their variances add."""
        return LogRatio(math.log(self.new.value / self.old.value), _variance(self.old) + _variance(self.new))


@dataclass(frozen=True)
class Change:
    """What became of one row, or of a contender over its groups.

    anchors: the peers that it was compared with. ratio: of its time over theirs, new over old; above 1 it is slower.
    reason: of a verdict without a ratio.
    """

    row: str
    verdict: str
    anchors: tuple[str, ...] = ()
    ratio: Interval | None = None
    reason: str = ""


def compare(
    old: Report,
    new: Report,
    tolerance: float = TOLERANCE,
    anchor: str | None = None,
    only: Collection[str] | None = None,
) -> list[Change]:
    """What became of every row of ours in the old report but deadlines, of its contenders, and which rows are new.

    tolerance: of the slow-down, 0.05 is 5 %. anchor: contender; default: all peers that a group has in both.
    only: ids of the old report's rows to look for, where the new run left others out on purpose.
    Raises ValueError for reports of different models.
    """
    if only is not None:
        old = replace(old, rows=tuple(row for row in old.rows if row.kind != OWN or row.id in only))
    _checked(tolerance)
    require_same_model(old, new)
    theirs = {_key(row): row for row in _own(new)}
    pairs = {row.id: _pair(row, theirs[_key(row)], old, new, anchor) for row in _own(old) if _key(row) in theirs}
    known = {_key(row) for row in _own(old)}
    judged = _judge([pair for pair in pairs.values() if pair is not None], _unrest(old, new), tolerance)
    rows = [judged[row.id] if row.id in judged else _missing(row, row.id in pairs, new) for row in _own(old)]
    contenders = [change for name, change in judged.items() if name not in pairs]
    return [*rows, *contenders, *(Change(row.id, NEW) for row in _own(new) if _key(row) not in known)]


def parse_tolerance(text: str) -> float:
    """`5%` or `0.05`, as a command line says it, to 0.05; ValueError for anything else."""
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        tolerance = float(number) / (100 if percent else 1)
    except ValueError:
        raise ValueError(f"tolerance: got {text!r}, expected a percentage such as 5%") from None
    return _checked(tolerance)


def fails(changes: Sequence[Change]) -> bool:
    """Whether a row is worse, or gone without a reason."""
    return any(change.verdict in FAILING for change in changes)


def tells(changes: Sequence[Change]) -> bool:
    """Whether anything was compared: a gate that compared nothing must not say that all is well."""
    return any(change.verdict in (*COMPARED, GONE) for change in changes)


def unseen(changes: Sequence[Change]) -> float | None:
    """The slow-down that even the calmest comparison may have missed, where each was too noisy to say."""
    ratios = [change.ratio for change in changes if change.ratio is not None]
    if not ratios or any(change.verdict in (WORSE, BETTER, SAME) for change in changes):
        return None
    return min(map(_half_width, ratios))


def require_same_model(old: Report, new: Report) -> None:
    """Raise ValueError for two reports whose times have nothing to do with each other."""
    for key in ("digest", "name"):
        before, after = old.model.get(key), new.model.get(key)
        if before is not None and after is not None:
            if before != after:
                raise ValueError(f"model: {key}: got {after}, expected {before} as in the old report; measure it again")
            return


def warnings(old: Report, new: Report) -> list[str]:
    """What else differs between two runs, a line for each kind."""
    found = [f"mode: {old.mode} before, {new.mode} now"] if old.mode != new.mode else []
    pairs = (("machine", old.machine, new.machine), ("settings", old.settings, new.settings))
    for name, before, after in pairs:
        differs = list(_differences(before, after))
        found += [f"{name}: {'; '.join(differs)}"] if differs else []
    return [*found, *_other_company(old, new)]


def verdict_of(change: Interval, tolerance: float) -> str:
    """Worse or better: by more than the tolerance, and surely so. Too noisy: an interval wider than the tolerance."""
    if change.value > 1 + tolerance and change.low > 1:
        return WORSE
    if change.value < 1 / (1 + tolerance) and change.high < 1:
        return BETTER
    return SAME if _half_width(change) <= tolerance else NOISY


def pooled(changes: Sequence[LogRatio]) -> LogRatio:
    """One change from several of the same size, each as important as it is precise."""
    weights = [1 / max(change.variance, TINY) for change in changes]
    mean = sum(w * change.value for w, change in zip(weights, changes, strict=True)) / sum(weights)
    return LogRatio(mean, 1 / sum(weights))


def _checked(tolerance: float) -> float:
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance: got {tolerance:g}, expected more than 0 and less than 1; 0.05 is 5 %")
    return tolerance


def _half_width(change: Interval) -> float:
    """0.05 where the interval goes from 1 / 1.05 of its middle to 1.05 of it."""
    return math.sqrt(change.high / change.low) - 1


def _judge(pairs: Sequence[Pair], unrest: float, tolerance: float) -> dict[str, Change]:
    """Verdicts of rows by their id, then of contenders over all of their groups."""
    together = {pair.row.contender: [p for p in pairs if p.row.contender == pair.row.contender] for pair in pairs}
    together = {f"{name}, {len(few)} groups together": few for name, few in together.items() if len(few) > 1}
    alone = {pair.row.id: [pair] for pair in pairs}
    width = NormalDist().inv_cdf(1 - (1 - FAMILY) / 2 / max(1, len(alone) + len(together)))
    judged = {}
    for name, few in {**alone, **together}.items():
        sampled = pooled([pair.change for pair in few])
        ratio = LogRatio(sampled.value, sampled.variance + 2 * unrest).interval(width)
        anchors = dict.fromkeys(anchor for pair in few for anchor in pair.anchors)
        judged[name] = Change(name, verdict_of(ratio, tolerance), tuple(anchors), ratio)
    return judged


def _pair(before: Row, after: Row, old: Report, new: Report, wanted: str | None) -> Pair | None:
    """With the peers of the row's group that both reports have; None without one."""
    then, now = ({row.contender: row for row in _peers(one, report)} for one, report in ((before, old), (after, new)))
    names = [name for name in then if name in now and wanted in (None, name)]
    if not names:
        return None
    return Pair(before, tuple(names), _ratio(before, then, names), _ratio(after, now, names))


def _ratio(row: Row, peers: Mapping[str, Row], names: Sequence[str]) -> Interval:
    """Of the row's times over the geometric mean of the named peers' in the same round."""
    logs = [[math.log(seconds) for seconds in peers[name].samples_s] for name in names]
    together = [math.exp(sum(at) / len(at)) for at in zip(*logs, strict=True)]
    return paired_ratio(row.samples_s, together, row.openings)


def _unrest(old: Report, new: Report) -> float:
    """The variance between two copies of one program beyond what their intervals explain, in the calmer run.

    A change that reached only one of the copies must not pass for noise, so one run may not speak for both.
    """
    excesses = []
    for report in (old, new):
        excess = [math.log(twin.ratio.value) ** 2 - _variance(twin.ratio) for twin in twins(report)]
        excesses.append(sum(excess) / len(excess) if excess else 0.0)
    return max(0.0, min(excesses))


def _variance(ratio: Interval) -> float:
    """Of the logarithm of a ratio, from its interval of `CONFIDENCE`.

    Student's are wider, which allows for a variance that is itself uncertain.
    """
    deviation = math.log(ratio.high / ratio.low) / 2 / NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    return deviation**2


def _peers(row: Row, report: Report) -> list[Row]:
    group = report.group(row.group)
    return [other for other in group if other.kind == PEER and in_same_rounds(row, other)]


def _missing(row: Row, is_there: bool, new: Report) -> Change:
    """A row that cannot be compared; one that vanished fails, unless the new report says why it was skipped."""
    if is_there:
        return Change(row.id, NO_ANCHOR, reason="no peer was timed beside it in both reports")
    names = (row.id, row.group, row.contender, row.suite)
    reason = next((str(entry.get("reason")) for entry in new.skipped if entry.get("what") in names), None)
    if reason is None:
        return Change(row.id, GONE, reason="not in the new report, and not among what it skipped")
    return Change(row.id, SKIPPED, reason=reason)


def _own(report: Report) -> list[Row]:
    return [row for row in report.rows if row.kind == OWN and row.suite != DEADLINE]


def _key(row: Row) -> tuple[Any, ...]:
    """What makes two rows the same measurement."""
    return row.id, row.batch, row.nfe, row.precision


def _other_company(old: Report, new: Report) -> Iterator[str]:
    """Groups in which others were timed beside the same rows: they share the caches with each other."""
    for group in dict.fromkeys(row.group for row in _own(old)):
        before, after = ({row.contender for row in report.group(group)} for report in (old, new))
        if after and before != after:
            yield f"{group}: timed beside others than before: {', '.join(sorted(before ^ after))}"


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    before, after = dict(flat(old)), dict(flat(new))
    for name in dict.fromkeys((*before, *after)):
        if before.get(name) != after.get(name) and not name.startswith(PASSING):
            yield f"{name}: {before.get(name, 'none')} before, {after.get(name, 'none')} now"
