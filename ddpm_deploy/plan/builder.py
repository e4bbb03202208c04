"""Building a plan by name, so that a solver reads like its paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from ddpm_deploy.plan.plan import Plan
from ddpm_deploy.schedule import Float


class PlanBuilder:
    """Collects rows by name, so that a solver reads like its paper.

    state: names of the state images, "x" first. In a row, "d" is the predicted clean image, "m" the raw output and
    "z" fresh noise; a state image that a row does not mention stays as it is.
    """

    def __init__(self, solver: str, state: Sequence[str]) -> None:
        self.solver, self.state = solver, tuple(state)
        self._columns = {name: i for i, name in enumerate((*self.state, "d", "m", "z"))}
        self._t: list[float] = []
        self._update: list[Float] = []

    def row(self, t: float, **targets: Mapping[str, float]) -> None:
        """One evaluation at t; each keyword is a state image with its factors by column name."""
        K = len(self.state)
        matrix = np.eye(K, K + 3)
        for name, factors in targets.items():
            target = self._column(name, self.state)
            matrix[target] = 0
            for column, factor in factors.items():
                matrix[target, self._column(column, tuple(self._columns))] += factor
        self._t.append(float(t))
        self._update.append(matrix)

    def _column(self, name: str, known: tuple[str, ...]) -> int:
        if name not in known:
            raise ValueError(f"row: got {name!r}, expected one of {', '.join(known)}")
        return self._columns[name]

    def build(self, log_variance: ArrayLike | None = None) -> Plan:
        """The plan, for a network that predicts the clean image; see `Plan.for_model`."""
        N = len(self._t)
        return Plan(
            solver=self.solver,
            state=self.state,
            t=np.array(self._t),
            predict=np.broadcast_to([0.0, 1.0], (N, 2)),
            clip=np.broadcast_to([-np.inf, np.inf], (N, 2)),
            update=np.array(self._update),
            log_variance=None if log_variance is None else np.asarray(log_variance, dtype=np.float64),
        )
