"""Which figures of a report are plotted, and against what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ddpm_deploy.bench.record import OWN, TWIN, Json, Report, Row
from ddpm_deploy.bench.report import words
from ddpm_deploy.bench.report.document import Bar, Bars, Chart, Figures, Point, Series, Style
from ddpm_deploy.bench.report.views import by_batch, entries, groups_of, is_trained, main_suite, median_s, samples_per_s

INTERVAL = "Whiskers are 95 % intervals of the median."
OTHER = Style("own0", 0)
TONES = 6


def latency(report: Report) -> list[Figures]:
    """Bars of the main suite, a panel for each batch."""
    panels = [_latency_bars(report, rows) for rows in by_batch(report).values()]
    return [Figures(tuple(panels), f"Median time of one call, ms; less is better. {INTERVAL}")]


def suite(report: Report, name: str) -> list[Figures]:
    """Of the main suite throughput and parity, of any other the times."""
    if name == main_suite(report):
        return _throughput_and_parity(report)
    panels = [_latency_bars(report, rows) for rows in groups_of(report, name)]
    return [Figures(tuple(panels), f"Median time of one call, ms; less is better. {INTERVAL}")]


def limits(report: Report) -> list[Figures]:
    """How much of what the hardware can do each row of the main suite reached."""
    panels = []
    for rows in by_batch(report).values():
        known = [row for row in rows if row.percent_of_limit is not None and row.kind != TWIN]
        if known:
            panels.append(_limit_bars(report, known))
    names = dict.fromkeys(row.limit for rows in by_batch(report).values() for row in rows if row.limit)
    return [Figures(tuple(panels), f"Percent of the limit that was measured in the same run: {', '.join(names)}.")]


def quality(report: Report) -> list[Figures]:
    """Each figure of quality against the evaluations that it took."""
    judged = [e for e in entries(report, "quality") if _all_numbers(e, "nfe", "value") and e["nfe"] > 0]
    if not is_trained(report):
        return []
    panels = [_quality_chart([e for e in judged if e.get("figure") == figure], figure)
              for figure in dict.fromkeys(entry.get("figure") for entry in judged)]  # fmt: skip
    return [Figures(tuple(panels), "Quality against evaluations for one sample; dashed: real samples held out.")]


def parity(report: Report) -> list[Figures]:
    """The error of each step on the reference's states, and how far a trajectory of its own drifts."""
    curves, look = entries(report, "parity_curves"), _styles(report)
    kinds = (("prediction_relative_l2", "one step, on the reference's states", "relative L2"),
             ("drift_max_abs", "a trajectory of its own", "max-abs error of the state"))  # fmt: skip
    panels = []
    for solver in dict.fromkeys(entry.get("solver") for entry in curves):
        for key, title, unit in kinds:
            series = [_curve(e, key, look) for e in curves if e.get("solver") == solver and e.get(key)]
            panels.append(Chart(f"{solver}: {title}", "step", unit, tuple(series), y_log=True))
    weights = "" if is_trained(report) else " The weights are random: it says that programs agree, nothing of pictures."
    drawn = tuple(panel for panel in panels if any(series.points for series in panel.series))
    return [Figures(drawn, f"Error against the float32 reference, step by step.{weights}")]


def _latency_bars(report: Report, rows: Sequence[Row]) -> Bars:
    look = _styles(report)
    bars = [_latency_bar(row, look) for row in sorted(rows, key=median_s)]
    return Bars(rows[0].group, tuple(bars))


def _latency_bar(row: Row, look: Mapping[str, Style]) -> Bar:
    median = row.summary.median
    value, low, high = (1e3 * part for part in (median.value, median.low, median.high))
    note = f"{row.contender}: {words.duration_interval(median)}, {words.parity(row.parity)}"
    return Bar(row.contender, look[row.contender], value, words.number(value), low, high, note)


def _limit_bars(report: Report, rows: Sequence[Row]) -> Bars:
    look = _styles(report)
    bars = [
        Bar(row.contender, look[row.contender], row.percent_of_limit or 0.0, words.percent(row.percent_of_limit))
        for row in sorted(rows, key=lambda row: -(row.percent_of_limit or 0))
    ]
    return Bars(rows[0].group, tuple(bars), (100.0, "limit"))


def _throughput_and_parity(report: Report) -> list[Figures]:
    """Side by side, as they share their legend: throughput over all batches, parity at the ends."""
    batches = by_batch(report)
    ends = [batches[batch] for batch in dict.fromkeys((min(batches), max(batches)))]
    rows = [row for group in ends for row in _judged(group)]
    equal = dict.fromkeys(row.contender for row in rows if not words.parity_error(row.parity))
    left_out = f" Without any error, so not on this axis: {', '.join(equal)}." if equal else ""
    random = "" if is_trained(report) else " The weights are random."
    panels = [*_throughput(report), *(chart for group in ends for chart in _against_parity(report, group))]
    what = "Samples that pass the network in a second, more is better; time against parity error, best below and left."
    return [Figures(tuple(panels), f"{what}{left_out}{random}")]


def _throughput(report: Report) -> list[Chart]:
    rows = [row for group in by_batch(report).values() for row in group if row.kind != TWIN]
    if len({row.batch for row in rows}) < 2:
        return []
    look = _styles(report)
    series = [
        Series(name, look[name], tuple(_throughput_point(row) for row in rows if row.contender == name))
        for name in dict.fromkeys(row.contender for row in rows)
    ]
    ticks = tuple(float(batch) for batch in by_batch(report))
    return [Chart("Throughput", "batch", "samples/s", tuple(series), x_log=True, y_log=True, x_ticks=ticks)]


def _throughput_point(row: Row) -> Point:
    median, rate = row.summary.median, samples_per_s(row)
    label = f"{row.contender}, batch {row.batch}: {words.number(rate)} samples/s"
    return Point(row.batch, rate, label, row.batch / median.high, row.batch / median.low)


def _against_parity(report: Report, rows: Sequence[Row]) -> list[Chart]:
    look = _styles(report)
    series = [_parity_mark(row, look) for row in _judged(rows) if words.parity_error(row.parity)]
    axes = ("median, ms", "parity error")
    return [Chart(rows[0].group, *axes, tuple(series), x_log=True, y_log=True)] if series else []


def _judged(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.kind != TWIN and words.parity_error(row.parity) is not None]


def _parity_mark(row: Row, look: Mapping[str, Style]) -> Series:
    found = words.parity_error(row.parity) or 0.0
    label = f"{row.contender}: {words.duration(median_s(row))}, {words.parity(row.parity)}"
    return Series(row.contender, look[row.contender], (Point(1e3 * median_s(row), found, label),), line=False)


def _quality_chart(entries: Sequence[Json], figure: Any) -> Chart:
    solvers = {str(name): OWN for name in dict.fromkeys(entry.get("solver") for entry in entries)}
    look = styles(solvers)
    series = []
    for solver in solvers:
        mine = sorted((e for e in entries if str(e.get("solver")) == solver), key=lambda e: float(e["nfe"]))
        points = [Point(e["nfe"], e["value"], f"{solver}, {e['nfe']}: {words.number(e['value'])}") for e in mine]
        series.append(Series(solver, look[solver], tuple(points)))
    real = next((float(e["baseline"]) for e in entries if _all_numbers(e, "baseline")), None)
    rule = None if real is None else (real, "real samples")
    return Chart(str(figure), "evaluations", "", tuple(series), x_log=True, rule=rule)


def _curve(entry: Json, key: str, look: Mapping[str, Style]) -> Series:
    name, t = str(entry.get("contender")), list(entry.get("t") or ())
    points = [
        Point(k + 1, float(value), f"{name}, step {k + 1}{f', t = {t[k]:g}' if k < len(t) else ''}: {value:.1e}")
        for k, value in enumerate(entry[key])
        if words.is_number(value) and value > 0
    ]
    return Series(name, look.get(name, OTHER), tuple(points), marks=len(points) == 1)


def styles(kinds: dict[str, str]) -> dict[str, Style]:
    """A style for each contender by its kind: own ones in colours, peers in grey, told apart by marker and dash."""
    found: dict[str, Style] = {}
    for kind in dict.fromkeys(kinds.values()):
        names = [name for name, its in kinds.items() if its == kind]
        for k, name in enumerate(names):
            tone = f"own{k % TONES}" if kind == OWN else "twin" if kind == TWIN else "peer"
            found[name] = Style(tone, k // TONES if kind == OWN else k)
    return found


def _styles(report: Report) -> dict[str, Style]:
    return styles({row.contender: row.kind for row in report.rows})


def _all_numbers(entry: Json, *keys: str) -> bool:
    return all(words.is_number(entry.get(key)) for key in keys)
