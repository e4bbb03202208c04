"""What follows from a report: winners, speed-ups over the same rounds, how far twins differ, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ddpm_deploy.bench.record import OWN, PEER, TWIN, Json, Report, Row, of_products
from ddpm_deploy.bench.report.words import is_number
from ddpm_deploy.bench.statistics import Interval

EAGER, COMPILED = "diffusers", "torch.compile"  # how the names of these peers begin
FULL = "fp32"
FINEST_FIRST = (FULL, "tf32", "fp16", "bf16", "int8")
STEP, SAMPLING, DEADLINE = "step", "sampling", "deadline"
TWIN_SUFFIX = " (twin)"


@dataclass(frozen=True)
class Against:
    """How many times as fast as `other` a row was, over their common rounds."""

    other: Row
    speed_up: Interval


@dataclass(frozen=True)
class Winner:
    """The fastest row of ours in a group, against its peers. level_with: rows of ours that cannot be told from it."""

    row: Row
    eager: Against | None
    compiled: Against | None
    strongest: Against | None
    level_with: tuple[str, ...] = ()


@dataclass(frozen=True)
class Twin:
    """A row and its copy: ratio is 1 but for noise."""

    row: Row
    original: Row
    ratio: Interval


def median_s(row: Row) -> float:
    """The median of its calls."""
    return row.summary.median.value


def eligible(rows: Sequence[Row]) -> list[Row]:
    """Rows of ours whose parity was measured, and so held, before they were timed."""
    return [row for row in rows if row.kind == OWN and row.parity is not None]


def winner(rows: Sequence[Row], precision: str | None = None) -> Winner | None:
    """The fastest eligible row of one group, of one precision or of any."""
    ours = [row for row in eligible(rows) if precision in (None, row.precision)]
    if not ours:
        return None
    best = min(ours, key=median_s)
    peers = equal_peers(best, rows)
    level = [row.contender for row in ours if row is not best and _level(best, row)]
    return Winner(
        best,
        against(best, _fastest(peers, EAGER, FULL)),
        against(best, _fastest(peers, COMPILED, FULL)),
        against(best, _fastest(peers)),
        tuple(level),
    )


def winners(rows: Sequence[Row]) -> list[Winner]:
    """Like for like first, in full precision; then the fastest of all precisions, where that is another row."""
    found = [one for one in (winner(rows, FULL), winner(rows)) if one is not None]
    return found[:1] if len(found) == 2 and found[0].row is found[1].row else found


def equal_peers(row: Row, rows: Sequence[Row]) -> list[Row]:
    """Peers with as many evaluations, and numbers at least as fine as the coarsest of this row."""
    coarsest = FINEST_FIRST.index(of_products(row.precision)) if of_products(row.precision) in FINEST_FIRST else 0
    fair = (row.precision, *FINEST_FIRST[: coarsest + 1])
    return [p for p in rows if p.kind == PEER and p.nfe == row.nfe and p.precision in fair]


def in_same_rounds(row: Row, other: Row) -> bool:
    """Whether samples of two rows of one group pair up; those of a deadline do not, as contenders took turns."""
    same = (len(row.samples_s), row.openings) == (len(other.samples_s), other.openings)
    return DEADLINE not in (row.suite, other.suite) and same


def against(row: Row, other: Row | None) -> Against | None:
    """The paired speed-up; None without a row or where the rounds were not the same."""
    if other is None or not in_same_rounds(row, other):
        return None
    return Against(other, other.times_over(row))


def twins(report: Report) -> list[Twin]:
    """Every twin beside its row, where both were timed in the same rounds."""
    found = []
    for row in report.rows:
        original = _original(row, report.group(row.group)) if row.kind == TWIN else None
        if original is not None and in_same_rounds(row, original):
            found.append(Twin(row, original, row.times_over(original)))
    return found


def deadline_twins(report: Report) -> float:
    """How far the medians of a row at a fixed rate and of its copy are apart at most, as a part of the smaller one."""
    pairs = [(median_s(row), _original(row, report.group(row.group))) for row in report.rows if row.kind == TWIN]
    found = [(copy, median_s(row)) for copy, row in pairs if row is not None and row.suite == DEADLINE]
    return max((max(pair) / min(pair) - 1 for pair in found), default=0.0)


def main_suite(report: Report) -> str | None:
    """The suite that the summary speaks of: single evaluations, or else the first that has a winner."""
    suites = dict.fromkeys(row.suite for row in eligible(report.rows))
    return STEP if STEP in suites else next(iter(suites), None)


def groups_of(report: Report, suite: str | None) -> list[list[Row]]:
    """The rows of each group of a suite, in the order of their measurement."""
    rows = [row for row in report.rows if row.suite == suite]
    return [[row for row in rows if row.group == name] for name in dict.fromkeys(row.group for row in rows)]


def by_batch(report: Report) -> dict[int, list[Row]]:
    """The first group with a winner for each batch of the main suite, batches ascending."""
    found: dict[int, list[Row]] = {}
    for rows in groups_of(report, main_suite(report)):
        if eligible(rows):
            found.setdefault(eligible(rows)[0].batch, rows)
    return dict(sorted(found.items()))


def samples_per_s(row: Row) -> float:
    """How many samples go through a call in a second."""
    return row.batch / median_s(row)


def flags(row: Row) -> str:
    """Why a row is not to be quoted; empty where it is."""
    found = []
    if row.summary.noisy:
        found.append("too noisy" if row.summary.n >= 10 else f"only {row.summary.n} rounds")
    if not row.stable:
        found.append("still warming up")
    return ", ".join(found)


def cost_per_1000(report: Report, row: Row) -> float | None:
    """Of a thousand samples, where the report knows the price of an hour and the row draws whole samples."""
    price = report.settings.get("price_per_hour")
    if row.solver is None or price is None or not is_number(price):
        return None
    return float(price) * 1000 * median_s(row) / row.batch / 3600


def entries(report: Report, key: str) -> list[Json]:
    """The facts of a section that is no rows; whatever there is not one is left out."""
    found = report.sections.get(key) or ()
    return [entry for entry in found if isinstance(entry, Mapping)]


def is_trained(report: Report) -> bool:
    """Whether the weights are; pictures of random ones mean nothing."""
    return report.model.get("trained") is True


def _fastest(peers: Sequence[Row], begins: str = "", precision: str | None = None) -> Row | None:
    named = [p for p in peers if p.contender.startswith(begins) and precision in (None, p.precision)]
    return min(named, key=median_s, default=None)


def _level(best: Row, row: Row) -> bool:
    found = against(best, row)
    return found is not None and found.speed_up.low <= 1


def _original(twin: Row, rows: Sequence[Row]) -> Row | None:
    name = twin.extra.get("of", twin.contender.removesuffix(TWIN_SUFFIX))
    return next((row for row in rows if row is not twin and name in (row.contender, row.id)), None)
