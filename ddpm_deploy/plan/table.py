"""A plan as a table for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ddpm_deploy.plan.plan import Plan

MAX_SHOWN_ROWS = 40


def render(plan: Plan) -> str:
    """One line a row; a long plan is cut in the middle."""
    noise = "deterministic" if plan.is_deterministic else f"noise in {sum(plan.draws_noise)} rows"
    variance = "" if plan.log_variance is None else ", learned variance"
    head = f"{plan.solver}: {plan.nfe} network evaluations, state {' '.join(plan.state)}, {noise}{variance}"
    rows = [_row(plan, i) for i in _shown(len(plan))]
    widths = [max(len(row[k]) for row in [COLUMNS, *rows]) for k in range(3)]
    lines = ["  ".join(cell.rjust(w) for cell, w in zip(row[:2], widths, strict=False)) for row in [COLUMNS, *rows]]
    lines = [
        f"{line}  {row[2].ljust(widths[2])}  {row[3]}".rstrip()
        for line, row in zip(lines, [COLUMNS, *rows], strict=True)
    ]
    if len(rows) < len(plan):
        lines.insert(1 + MAX_SHOWN_ROWS // 2, f"... {len(plan) - len(rows)} more rows ...")
    return "\n".join([head, *lines])


COLUMNS = ("row", "t", "clean image", "next state")


def _shown(count: int) -> list[int]:
    half = MAX_SHOWN_ROWS // 2
    if count <= MAX_SHOWN_ROWS:
        return list(range(count))
    return [*range(half), *range(count - half, count)]


def _row(plan: Plan, i: int) -> tuple[str, str, str, str]:
    columns = (*plan.state, "d", "m", "z")
    lo, hi = plan.clip[i]
    clip = "" if np.isinf(lo) and np.isinf(hi) else f" in [{lo:g}, {hi:g}]"
    clean = "d = " + _expression(plan.predict[i], ("x", "m")) + clip
    updates = [
        f"{name} = {_expression(factors, columns)}"
        for k, (name, factors) in enumerate(zip(plan.state, plan.update[i], strict=True))
        if not _is_kept(factors, k)
    ]
    return str(i), f"{plan.t[i]:.4g}" if plan.t[i] % 1 else f"{plan.t[i]:.0f}", clean, "; ".join(updates)


def _is_kept(factors: np.ndarray, k: int) -> bool:
    return bool(factors[k] == 1 and np.count_nonzero(factors) == 1)


def _expression(factors: np.ndarray, names: tuple[str, ...]) -> str:
    parts = [
        f"{'+' if factor > 0 else '-'} {f'{abs(factor):.5g} '.removeprefix('1 ')}{name}"
        for factor, name in zip(factors, names, strict=True)
        if factor != 0
    ]
    text = " ".join(parts) or "0"
    return text.removeprefix("+ ")
