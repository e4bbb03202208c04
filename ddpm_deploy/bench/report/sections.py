"""The whole report as sections, for every renderer; what the run did not measure has no section."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from ddpm_deploy.bench.record import Json, Report, Row
from ddpm_deploy.bench.report import plots, words
from ddpm_deploy.bench.report.document import (
    Block,
    Bullets,
    Code,
    Details,
    Figures,
    Inline,
    Line,
    Paragraph,
    Section,
    Table,
)
from ddpm_deploy.bench.report.tables import (
    budgets,
    commands_table,
    deadlines_table,
    gains_table,
    suite_table,
    twins_table,
    winners_table,
    without_empty,
)
from ddpm_deploy.bench.report.views import DEADLINE, entries, groups_of
from ddpm_deploy.bench.statistics import BEYOND, CONFIDENCE, QUOTABLE, RESAMPLES

SUITES = {"step": "One evaluation of the network", "sampling": "Whole samples"}
PROTOCOL = (
    "Every contender is first held against the float32 reference; one over its budget is not timed. Contenders of a "
    "group then run side by side in one process: in each round every one of them once, in an order drawn anew, "
    "after a warm-up until none gets faster, the device synchronised inside of the timed region, the garbage collector "
    "off. Where that is possible all of them are closed and opened again between parts of the rounds, as a copy of a "
    "program keeps the memory that it was given, and with it a percent of speed. A speed-up is the median of one "
    "contender's time over another's in the same round, so drift of the machine cancels; over several openings it is "
    f"the mean of their medians. Brackets are {CONFIDENCE:.0%} intervals, Student's over the openings, or of a single "
    f"opening a block bootstrap over the rounds with {RESAMPLES:,} resamples; they tell of this run, not of another "
    "machine. A percentile is shown where at least "
    f"{BEYOND} samples lie beyond it. A median whose interval is wider than ±{QUOTABLE:.0%} is too noisy "
    "to quote. A twin is a second copy of one of our contenders: what differs between them is noise."
)

Columns = Mapping[str, Callable[[Json], Inline]]


def sections(report: Report) -> list[Section]:
    """In the order of their reading."""
    return [section for section in _all(report) if section.blocks]


def _all(report: Report) -> Iterator[Section]:
    yield Section("winners", "Winners", _unless_empty(winners_table(report)) + _figures(plots.latency(report)))
    for suite in dict.fromkeys(row.suite for row in report.rows if row.suite != DEADLINE):
        yield _suite(report, suite)
    yield _deadlines(report)
    yield Section("quality", "Quality", _figures(plots.quality(report)) + _entries(report, "quality", QUALITY))
    yield Section("parity", "Parity", _figures(plots.parity(report)) + _entries(report, "parity_curves", CURVES))
    yield Section("noise", "Noise: twins", _unless_empty(twins_table(report)))
    for key, (title, remark, columns) in PLAIN.items():
        yield _plain(report, key, title, remark, columns)
    yield Section("limits", "Limits of the machine", _figures(plots.limits(report)) + _limits(report))
    yield Section("machine", "Machine, model, settings", _setup(report))
    yield Section("protocol", "Protocol", (Paragraph((PROTOCOL,)),))
    yield _skipped(report)


def _suite(report: Report, suite: str) -> Section:
    """Its figures, a table for each group, bounds and commands."""
    groups = groups_of(report, suite)
    rows = [row for group in groups for row in group]
    blocks: list[Block] = list(_unless_empty(gains_table(report))) if suite == "sampling" else []
    blocks += _figures(plots.suite(report, suite))
    for group in groups:
        blocks += [Paragraph((group[0].group,), title=True), suite_table(report, group)]
    blocks += _remarks(rows)
    return Section(f"suite-{suite}", SUITES.get(suite, suite.capitalize()), (*blocks, commands_table(rows)))


def _remarks(rows: Sequence[Row]) -> list[Block]:
    held = budgets(rows)
    found = [Paragraph((f"Held before timing: {'; '.join(held)}.",), small=True)] if held else []
    if any(row.parity is not None and row.parity.weights != "trained" for row in rows):
        found.append(
            Paragraph(("On random weights parity says that programs agree, nothing of pictures.",), small=True)
        )
    return list(found)


def _deadlines(report: Report) -> Section:
    rows = [row for row in report.rows if row.suite == DEADLINE]
    blocks = (deadlines_table(rows), *_remarks(rows), commands_table(rows)) if rows else ()
    return Section("deadlines", "Deadlines", blocks)


def _plain(report: Report, key: str, title: str, remark: str, columns: Columns) -> Section:
    blocks = _entries(report, key, columns)
    return Section(key, title, (*blocks, Paragraph((remark,), small=True)) if blocks and remark else blocks)


def _setup(report: Report) -> tuple[Block, ...]:
    about = {"name": report.name, "made": report.made, "mode": report.mode}
    parts = {"Run": about, "Model": report.model, "Machine": report.machine, "Settings": report.settings}
    opened = (Details(name, table) for name, plain in parts.items() for table in facts(plain))
    return (Paragraph(("Measured by ", Code(report.command))), *opened)


def _limits(report: Report) -> tuple[Block, ...]:
    return tuple(Details("Peaks, bandwidth, work, and where they come from", table) for table in facts(report.limits))


def _skipped(report: Report) -> Section:
    lines: tuple[Line, ...] = tuple((f"{e.get('what')}: {e.get('reason')}",) for e in report.skipped)
    return Section("skipped", "Skipped", (Bullets(lines),) if lines else ())


def facts(plain: Json) -> tuple[Table, ...]:
    """Whatever a mapping holds, a line for each value."""
    return _unless_empty(Table(("", "value"), tuple(words.flat(plain))))


def _entries(report: Report, key: str, columns: Columns) -> tuple[Block, ...]:
    rows = tuple(tuple(cell(entry) for cell in columns.values()) for entry in entries(report, key))
    return _unless_empty(Table(tuple(columns), rows))


def _unless_empty(table: Table) -> tuple[Table, ...]:
    found = without_empty(table)
    return (found,) if found.rows and found.columns else ()


def _figures(found: Sequence[Figures]) -> tuple[Figures, ...]:
    return tuple(figures for figures in found if figures.plots)


def _text(key: str) -> Callable[[Json], Inline]:
    return lambda entry: words.NONE if entry.get(key) is None else str(entry[key])


def _number(key: str) -> Callable[[Json], Inline]:
    return lambda entry: words.maybe(entry.get(key))


def _size(key: str) -> Callable[[Json], Inline]:
    return lambda entry: words.size(entry.get(key))


def _largest(key: str) -> Callable[[Json], Inline]:
    return lambda entry: words.error(key, max(map(float, entry.get(key) or ()), default=words.NONE))


def _spread(entry: Json) -> Inline:
    samples = entry.get("total_samples_s") or ()
    return f"{words.number(min(samples))} to {words.number(max(samples))}" if samples else words.NONE


def _between(entry: Json) -> Inline:
    low, high = entry.get("spread") or (None, None)
    return f"{words.maybe(low)} to {words.maybe(high)}" if low != high else words.NONE


def _verdict(entry: Json) -> Inline:
    return {True: "reached", False: "missed"}.get(entry.get("met"), words.NONE)  # type: ignore[arg-type]


def _apart(entry: Json) -> Inline:
    ours, theirs = entry.get("ours_ms"), entry.get("figure_ms")
    if not (words.is_number(ours) and words.is_number(theirs) and theirs):
        return words.NONE
    return f"{100 * (ours / theirs - 1):+.1f} %".replace("-", "−")


QUALITY: Columns = {
    "solver": _text("solver"), "evaluations>": _text("nfe"), "figure": _text("figure"), "value>": _number("value"),
    "of real samples>": _number("baseline"), "samples>": _text("n"), "drawn by": _text("contender"),
}  # fmt: skip
CURVES: Columns = {
    "contender": _text("contender"), "solver": _text("solver"), "weights": _text("weights"),
    "worst step, relative L2>": _largest("prediction_relative_l2"),
    "largest drift, max-abs>": _largest("drift_max_abs"),
}  # fmt: skip
COLD: Columns = {
    "contender": _text("contender"), "import, s>": _number("import_s"), "load, s>": _number("load_s"),
    "first picture, s>": _number("first_picture_s"), "all, s>": _number("total_s"), "all, from to>": _spread,
    "peak memory>": _size("peak_rss_bytes"), "artefact>": _size("artefact_bytes"), "processes>": _text("n"),
    "parity": _text("parity"),
}  # fmt: skip
SIZES: Columns = {"file": _text("file"), "precision": _text("precision"), "size>": _size("size_bytes")}
OVERHEAD: Columns = {
    "what": _text("what"), "value>": _number("value"), "unit": _text("unit"), "target": _text("target")
}  # fmt: skip
EXPORT: Columns = {"what": _text("what"), "seconds>": _number("seconds"), "size>": _size("size_bytes")}
CROSSCHECKS: Columns = {
    "row": _text("row"), "ours, ms>": _number("ours_ms"), "theirs, ms>": _number("figure_ms"), "apart>": _apart,
    "tool": _text("tool"), "version": _text("version"), "their figure": _text("what"),
    "parity": _text("parity"),
}  # fmt: skip
LOADGEN: Columns = {
    "scenario": _text("scenario"), "figure": _text("figure"), "value>": _number("value"), "unit": _text("unit"),
    "n>": _text("n"), "of": _text("contender"), "parity": _text("parity"), "by": _text("label"),
}  # fmt: skip
SERVING: Columns = {
    "figure": _text("figure"), "of": _text("contender"), "value>": _number("value"), "unit": _text("unit"),
    "from to>": _between, "target": _text("target"), "": _verdict, "requests>": _text("n"), "remark": _text("remark"),
}  # fmt: skip
ENGINE_STEPS: Columns = {"samples in a call>": _text("batch"), "seconds>": _number("step_s")}
TRIALS: Columns = {
    "contender": _text("contender"), "requests/s>": _number("rate"), "requests>": _text("n"),
    "late, of all>": _number("late"), "slowdown, p50>": _number("p50"), "p99>": _number("p99"),
    "stopped as lost": _text("stopped"),
}  # fmt: skip
PLAIN: Mapping[str, tuple[str, str, Columns]] = {
    "cold_start": ("Cold start and memory", "Medians over processes of their own; peak memory is resident.", COLD),
    "sizes": ("Artefacts", "", SIZES),
    "overhead": ("The sampler's own cost", "On a network that costs nothing.", OVERHEAD),
    "export": ("Export", "", EXPORT),
    "crosschecks": (
        "Cross-checks",
        "The same files, timed by tools that are not ours; more than a factor of two apart, twice, fails the run.",
        CROSSCHECKS,
    ),
    "loadgen": ("Load generator", "Not an official MLPerf result.", LOADGEN),
    "serving": ("Serving under load", "Poisson arrivals in an open loop; alone: of the same request, idle.", SERVING),
    "serving_steps": ("Serving: an engine's calls", "", ENGINE_STEPS),
    "serving_trials": ("Serving under load: every trial", "Slowdown: times the latency alone.", TRIALS),
}
