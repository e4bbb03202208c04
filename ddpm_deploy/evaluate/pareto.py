"""Which plans are worth having: none is both faster and better; and the cheapest that is as good as the full chain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SIGMAS = 2.0


@dataclass(frozen=True)
class Trial:
    """One plan that was tried. spacing: a name, "tuned", or "all" for the full chain. cost: seconds a sample."""

    solver: str
    spacing: str
    nfe: int
    steps: int
    distance: float
    error: float
    seconds: float
    timesteps: tuple[float, ...] | None = None

    @property
    def label(self) -> str:
        """Its name in tables and plots."""
        return f"{self.solver}, {self.spacing}, {self.nfe}"


def pareto_front(trials: Sequence[Trial]) -> list[Trial]:
    """From the cheapest to the best; the number of evaluations is the cost, as it is free of the clock's noise."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.nfe, t.distance)):
        if not front or trial.distance < front[-1].distance:
            front.append(trial)
    return front


def recommend(trials: Sequence[Trial], reference: Trial) -> Trial:
    """The fewest evaluations whose distance is within two standard errors of the full chain's; else the best."""
    limit = reference.distance + SIGMAS * reference.error
    good = [trial for trial in pareto_front(trials) if trial.distance <= limit]
    return good[0] if good else min(trials, key=lambda trial: trial.distance)
