"""The summary and the verdicts of a comparison as lines for a terminal: nothing in them can move its cursor."""

from __future__ import annotations

from collections.abc import Sequence

from ddpm_deploy.bench.gate import COMPARED, FAILING, Change, unseen, warnings
from ddpm_deploy.bench.record import Report
from ddpm_deploy.bench.report.document import text_of
from ddpm_deploy.bench.report.markup import clean
from ddpm_deploy.bench.report.summary import summary
from ddpm_deploy.bench.statistics import Interval

ORDER = (*FAILING, *COMPARED)  # what fails stands first


def summary_lines(report: Report) -> list[str]:
    """The report in ten sentences."""
    return [printable(text_of(line)) for line in summary(report)]


def comparison_lines(old: Report, new: Report, changes: Sequence[Change]) -> list[str]:
    """The table of all changes, what speaks against it, and how many there are of each verdict."""
    found, missed = warnings(old, new), unseen(changes)
    if missed is not None:
        found.append(f"too noisy: a slow-down of less than {missed:.1%} may pass unseen; measure longer")
    return [*change_lines(changes), *(printable(f"warning: {line}") for line in found), counts_in_words(changes)]


def change_lines(changes: Sequence[Change]) -> list[str]:
    """A table: the verdict, the change of the time over the anchor's with its interval, and of which row."""
    cells = [(change.verdict, _deviation(change.ratio), _what(change)) for change in sorted(changes, key=_place)]
    first, second = (max(map(len, column), default=0) for column in list(zip(*cells, strict=True))[:2] or ((), ()))
    return [f"{verdict:<{first}}  {ratio:>{second}}  {what}" for verdict, ratio, what in cells]


def counts_in_words(changes: Sequence[Change]) -> str:
    """`1 worse, 3 same`."""
    verdicts = [change.verdict for change in sorted(changes, key=_place)]
    return ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts)) or "nothing"


def printable(text: str) -> str:
    """On one line, without control characters."""
    return " ".join(clean(text).split())


def _place(change: Change) -> int:
    return ORDER.index(change.verdict) if change.verdict in ORDER else len(ORDER)


def _what(change: Change) -> str:
    details = change.reason or (f"against {_peers(change.anchors)}" if change.anchors else "")
    return printable(f"{change.row}{f' ({details})' if details else ''}")


def _peers(names: Sequence[str]) -> str:
    """A single peer by its name, several by their number."""
    return names[0] if len(names) == 1 else f"the mean of {len(names)} peers"


def _deviation(ratio: Interval | None) -> str:
    """`+10.2 % [+8.1, +12.4]`, in letters that every terminal has."""
    if ratio is None:
        return ""
    value, low, high = (f"{100 * (part - 1):+.1f}" for part in (ratio.value, ratio.low, ratio.high))
    return f"{value} % [{low}, {high}]"
