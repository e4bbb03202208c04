"""The targets of the GPU beside what a report measured, as lines for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.asked import LARGE, MODELS, PRECISIONS
from benchmarks.gpu.parity import OVER
from benchmarks.gpu.paths import ON_HOST
from benchmarks.gpu.peers import COMPILEDS, EAGERS
from ddpm_deploy.bench.record import OWN, PEER, Report, Row
from ddpm_deploy.bench.report.views import flags
from ddpm_deploy.bench.report.words import times_interval

BUSY = "wall over device-busy, batch 1"
NARROW = ("bf16", "fp16")
NETWORK = "cifar10"  # large enough to fill a GPU
OVER_EAGER, OVER_COMPILED, LEVEL, BUSY_AT_MOST, PEAK_AT_LEAST = 6.0, 1.3, 1.0, 1.03, 45.0
HEADS = ("figure", "target", "measured", "by", "verdict")


@dataclass(frozen=True)
class Figure:
    """One figure beside its target. ok: None where it was not measured. but: why not to rely on it."""

    what: str
    target: str
    value: str
    by: str = ""
    ok: bool | None = None
    but: str = ""

    @property
    def verdict(self) -> str:
        """In words."""
        said = {True: "reached", False: "MISSED", None: "not measured"}[self.ok]
        return f"{said}, but {self.but}" if self.but else said


def table(report: Report) -> str:
    """Every target with what was measured, one line each."""
    cells = [HEADS, *((one.what, one.target, one.value, one.by, one.verdict) for one in figures(report))]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def figures(report: Report) -> list[Figure]:
    """In the order of the table."""
    ratios = ((1, EAGERS, "eager", OVER_EAGER), (1, COMPILEDS, "torch.compile", OVER_COMPILED),
              (LARGE, COMPILEDS, "torch.compile", LEVEL))  # fmt: skip
    found = [figure for ratio in ratios for model in MODELS for figure in _speed_ups(report, model, *ratio)]
    return [*found, *_busy(report), *_peaks(report), _parity(report)]


def _speed_ups(report: Report, model: str, batch: int, names: Sequence[str], what: str, target: float) -> list[Figure]:
    """Of each precision in which both were timed; the few-step solver where several were."""
    found = []
    for precision in PRECISIONS:
        title = f"{model} batch {batch} against {what}, {precision}"
        for rows in _groups(report, model, batch, precision):
            ours, peer = _fastest(rows, lambda row: row.kind == OWN), _fastest(rows, _is_peer(names, precision))
            if ours is not None and peer is not None:
                ratio = peer.times_over(ours)
                value = f"{times_interval(ratio)}, {ours.solver} {ours.nfe}"
                settings: Any = {"by": ours.contender, "ok": ratio.value >= target, "but": _reservations(ours, peer)}
                found.append(Figure(title, f">= {target:g}x", value, **settings))
                break
    return found or [Figure(f"{model} batch {batch} against {what}", f">= {target:g}x", _why_not(report, names, model))]


def _busy(report: Report) -> list[Figure]:
    """By the kernels of a trace where there is one, or else by events around the loop."""
    found = []
    for path, facts in (report.limits.get(BUSY) or {}).items():
        if facts:
            by = "wall_over_kernels" if "wall_over_kernels" in facts else "wall_over_events"
            span = f", {facts['wall_over_span']:.3f} over the span" if "wall_over_span" in facts else ""
            value = f"{facts[by]:.3f}{span}"
            title, ok = f"{path}: wall over device-busy", facts[by] <= BUSY_AT_MOST
            found.append(Figure(title, f"<= {BUSY_AT_MOST:g}", value, by.removeprefix("wall_over_"), ok))
    return found or [Figure("wall over device-busy, batch 1", f"<= {BUSY_AT_MOST:g}", "no trace of a GPU")]


def _peaks(report: Report) -> list[Figure]:
    found = []
    for precision in NARROW:
        rows = [row for group in _groups(report, NETWORK, LARGE, precision) for row in group]
        best = _fastest(rows, lambda row: row.kind == OWN and row.percent_of_limit is not None)
        if best is not None and best.percent_of_limit is not None:
            title, reached = f"{NETWORK} batch {LARGE}, of the {precision} matrix peak", best.percent_of_limit
            settings: Any = {"by": best.contender, "ok": reached >= PEAK_AT_LEAST, "but": _reservations(best)}
            found.append(Figure(title, f">= {PEAK_AT_LEAST:g} %", f"{reached:.1f} %", **settings))
    title = f"{NETWORK} batch {LARGE}, of the matrix peak"
    return found or [Figure(title, f">= {PEAK_AT_LEAST:g} %", f"no {' or '.join(NARROW)} row at batch {LARGE}")]


def _parity(report: Report) -> Figure:
    """Rows were judged before they were timed, so those that failed are among what was skipped."""
    held = sum(row.kind == OWN for row in report.rows)
    over = [str(entry["what"]) for entry in report.skipped if str(entry["reason"]).startswith(OVER)]
    value = f"{held} rows of ours within, {len(over)} contenders over{': ' if over else ''}{'; '.join(over)}"
    return Figure("pictures against float32", "in budget", value, ok=not over if held or over else None)


def _groups(report: Report, model: str, batch: int, precision: str) -> Iterator[list[Row]]:
    """Of one model, batch and precision, by ascending evaluations."""
    groups = [report.group(name) for name in report.groups if name.startswith(f"{model}:")]
    chosen = [rows for rows in groups if (rows[0].batch, rows[0].precision) == (batch, precision)]
    yield from sorted(chosen, key=lambda rows: rows[0].nfe)


def _fastest(rows: Sequence[Row], wanted: Callable[[Row], bool]) -> Row | None:
    return min(filter(wanted, rows), key=lambda row: row.summary.median.value, default=None)


def _is_peer(names: Sequence[str], precision: str) -> Callable[[Row], bool]:
    return lambda row: row.kind == PEER and row.contender in [f"{name} {precision}" for name in names]


def _reservations(*rows: Row) -> str:
    """Why a figure of these rows is not to be quoted."""
    found = [reason for row in rows for reason in flags(row).split(", ") if reason]
    found += ["the host drives its loop" for row in rows if row.kind == OWN and ON_HOST in row.note]
    return ", ".join(dict.fromkeys(found))


def _why_not(report: Report, names: Sequence[str], model: str) -> str:
    """The first reason why such a peer was skipped for this model, cut short."""
    words = [name.replace(" ", "_").replace(",", "") for name in names]
    for entry in report.skipped:
        what = str(entry["what"])
        if model in what and any(word in what for word in words):
            return str(entry["reason"]).partition(";")[0][:100]
    return "no such pair was timed"
