"""The tables of timed rows: the winners, every suite, deadlines, whole samples, twins."""

from __future__ import annotations

from collections.abc import Sequence

from ddpm_deploy.bench.record import OWN, TWIN, Report, Row
from ddpm_deploy.bench.report import words
from ddpm_deploy.bench.report.document import Code, Details, Inline, Table
from ddpm_deploy.bench.report.gains import gains
from ddpm_deploy.bench.report.views import (
    DEADLINE,
    Against,
    Winner,
    cost_per_1000,
    flags,
    median_s,
    samples_per_s,
    twins,
    winners,
)

WINNERS = (
    "asked of all", "our fastest", "median, ms>", "parity", "over eager fp32>", "over torch.compile fp32>",
    "strongest peer", "over it>", "of limit>", "remark",
)  # fmt: skip
SUITE = ("contender", "kind", "median, ms>", "95 % interval>", "p90>", "p99>", "n>", "cv>", "samples/s>", "parity")
MARKS = {OWN: "ours", TWIN: "twin"}


def winners_table(report: Report) -> Table:
    """One line for each group: our fastest in full precision, and the fastest of all where that is another."""
    groups = [report.group(name) for name in report.groups]
    asked = [rows for rows in groups if rows[0].suite != DEADLINE]
    return Table(WINNERS, tuple(_winner(best) for rows in asked for best in winners(rows)))


def suite_table(report: Report, rows: Sequence[Row]) -> Table:
    """All rows of one group, fastest first; columns that none of them fills are left out."""
    ordered = sorted(rows, key=median_s)
    cells = [(*_timing(row), *_context(report, row)) for row in ordered]
    columns = (*SUITE, *_context_names(report))
    best = [one.row.id for one in winners(rows)]
    marked = {k for k, row in enumerate(ordered) if row.id in best}
    return without_empty(Table(columns, tuple(cells), frozenset(marked)))


def commands_table(rows: Sequence[Row]) -> Details:
    """What measures each row alone."""
    lines = tuple((Code(row.id), str(row.nfe), Code(row.command)) for row in rows)
    return Details(f"Measure one of these {len(rows)} rows again", Table(("row", "evaluations>", "command"), lines))


def gains_table(report: Report) -> Table:
    """A picture's gain as its two factors, with the quality that both ways reach."""
    columns = ("solver", "contender", "batch>", "gain", "interval>", "over", "quality")
    rows = []
    for gain in gains(report):
        total = gain.total or gain.faster.speed_up
        quality = f"fewer evaluations are not claimed: {gain.why_not}" if gain.why_not else gain.quality
        interval = f"[{words.number(total.low)}, {words.number(total.high)}]"
        solver, contender = f"{gain.row.solver} {gain.row.nfe}", gain.row.contender
        rows.append((solver, contender, str(gain.row.batch), gain.in_words, interval, gain.over, quality))
    return Table(columns, tuple(rows))


def twins_table(report: Report) -> Table:
    """How far two copies of one program are apart, which is the noise."""
    rows = tuple((twin.row.group, twin.original.contender, words.deviation(twin.ratio)) for twin in twins(report))
    return Table(("group", "contender", "its twin's time>"), rows)


def deadlines_table(rows: Sequence[Row]) -> Table:
    """What was late; a deadline that is missed is no latency."""
    columns = (
        "asked of all",
        "contender",
        "period, ms>",
        "missed>",
        "of>",
        "median, ms>",
        "p90, ms>",
        "p99, ms>",
        "worst, ms>",
    )
    return without_empty(Table((*columns, "parity", "remark"), tuple(_deadline(row) for row in rows)))


def without_empty(table: Table) -> Table:
    """Without the columns in which nothing stands."""
    kept = [k for k in range(len(table.columns)) if any(row[k] not in ("", words.NONE) for row in table.rows)]
    rows = tuple(tuple(row[k] for k in kept) for row in table.rows)
    return Table(tuple(table.columns[k] for k in kept), rows, table.marked)


def budgets(rows: Sequence[Row]) -> list[str]:
    """The bounds that held before anything was timed, each once."""
    return list(dict.fromkeys(row.parity.budget for row in rows if row.parity is not None and row.parity.budget))


def _winner(best: Winner) -> tuple[Inline, ...]:
    row = best.row
    strongest = best.strongest.other.contender if best.strongest else words.NONE
    level = f"not told apart from {', '.join(best.level_with)}" if best.level_with else ""
    return (
        row.group,
        row.contender,
        words.milliseconds(median_s(row)),
        words.parity(row.parity),
        _speed(best.eager),
        _speed(best.compiled),
        strongest,
        _speed(best.strongest),
        words.percent(row.percent_of_limit),
        "; ".join(part for part in (flags(row), level, row.note) if part),
    )


def _speed(found: Against | None) -> str:
    return words.NONE if found is None else words.times_interval(found.speed_up)


def _timing(row: Row) -> tuple[Inline, ...]:
    figures = row.summary
    low, high = (words.milliseconds(edge) for edge in (figures.median.low, figures.median.high))
    return (
        row.contender,
        MARKS.get(row.kind, row.kind),
        words.milliseconds(figures.median.value),
        f"[{low}, {high}]",
        words.milliseconds(figures.p90),
        words.milliseconds(figures.p99),
        str(figures.n),
        words.percent(100 * figures.cv),
        words.number(samples_per_s(row)),
        words.parity(row.parity),
    )


def _context_names(report: Report) -> tuple[str, ...]:
    currency = report.settings.get("currency", "")
    return ("of limit>", f"1,000 samples{f', {currency}' if currency else ''}>", "remark")


def _context(report: Report, row: Row) -> tuple[Inline, ...]:
    cost = cost_per_1000(report, row)
    limit = words.percent(row.percent_of_limit)
    remark = "; ".join(part for part in (flags(row), row.note) if part)
    return limit, words.NONE if cost is None else words.number(cost), remark


def _deadline(row: Row) -> tuple[Inline, ...]:
    figures, extra = row.summary, row.extra
    late = [words.maybe(extra.get("period_ms")), *(str(extra.get(key, words.NONE)) for key in ("missed", "of"))]
    times = [words.milliseconds(part) for part in (figures.median.value, figures.p90, figures.p99, figures.worst)]
    return row.group, row.contender, *late, *times, words.parity(row.parity), flags(row)
