"""Parity figures as a table, as JSON and as a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_deploy.parity.budget import Budget
from ddpm_deploy.parity.measure import Comparison

SCHEMA_VERSION = 1
COLUMNS = (
    "candidate",
    "step rel. L2",
    "points",
    "next state",
    "final max-abs",
    "final PSNR",
    "drift over budget",
    "verdict",
)


def table(results: Sequence[Comparison], budgets: Mapping[str, Budget]) -> str:
    """One line a candidate: the worst step and single evaluation, the final samples, and whether they are in budget."""
    rows = [COLUMNS, *(_row(result, budgets[result.name]) for result in results)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines)


def to_dict(results: Sequence[Comparison], budgets: Mapping[str, Budget], about: Mapping[str, Any]) -> dict[str, Any]:
    """Everything measured, for JSON."""
    return {
        "schema_version": SCHEMA_VERSION,
        **about,
        "candidates": [
            {
                **result.to_dict(),
                "budget": vars(budgets[result.name]),
                "failures": budgets[result.name].failures(result),
            }
            for result in results
        ],
    }


def plot(results: Sequence[Comparison], budgets: Mapping[str, Budget], path: Path, title: str) -> None:
    """Teacher-forced error and free-running drift by row, both on log axes. Needs matplotlib."""
    plots = pyplot()
    figure, (left, right) = plots.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for result in results:
        rows = np.arange(1, len(result.t) + 1)
        left.semilogy(rows, _visible(result.prediction_relative_l2), lw=1.4, label=result.name)
        right.semilogy(rows, _visible(result.drift_max_abs), lw=1.4, label=result.name)
    _limit(left, {budgets[r.name].prediction_relative_l2 for r in results})
    _limit(right, {budgets[r.name].final_max_abs for r in results})
    left.set(title="One step, on the reference's states", xlabel="step", ylabel="relative L2 error of the prediction")
    right.set(title="Whole trajectory, on its own", xlabel="step", ylabel="max-abs error of the state")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plots.close(figure)


def pyplot() -> Any:
    """matplotlib's plotting module, drawing into files only; ValueError where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise ValueError("plot: matplotlib is not installed; pip install 'ddpm-deploy[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _row(result: Comparison, budget: Budget) -> tuple[str, ...]:
    limit = budget.final_max_abs
    over = None if limit is None else result.first_drift_over(limit)
    failures = budget.failures(result)
    verdict = "within budget" if not failures else "OVER BUDGET: " + "; ".join(failures)
    return (
        result.name,
        f"{result.prediction_relative_l2.max():.2e}",
        f"{result.points_relative_l2.max():.2e}" if result.points_relative_l2.size else "-",
        f"{result.next_state_max_abs.max():.2e}",
        f"{result.final_max_abs:.2e}",
        "equal" if np.isinf(result.final_psnr_db) else f"{result.final_psnr_db:.1f} dB",
        "never" if over is None else f"step {over + 1}, t = {result.t[over]:g}",
        verdict,
    )


def _visible(errors: Any) -> Any:
    """An error of exactly zero has no place on a log axis: leave it out."""
    return np.where(errors > 0, errors, np.nan)


def _limit(axes: Any, bounds: set[float | None]) -> None:
    for bound in bounds - {None}:
        axes.axhline(bound, color="0.4", ls="--", lw=1, label=f"budget {bound:g}")
