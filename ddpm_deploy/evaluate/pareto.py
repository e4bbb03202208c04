"""Which plans are worth having: none is both faster and better; and the cheapest that is as good as the full chain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SIGMAS = 2.0
MARGIN = 0.02  # of the full chain's distance: less is not worth an evaluation


@dataclass(frozen=True)
class Trial:
    """One plan that was tried. spacing: a name, "tuned", or "all" for the full chain. seconds: of a sample.

    apart_error: of how much further than the full chain it is, on the same noise; None where that is not known.
    """

    solver: str
    spacing: str
    nfe: int
    steps: int
    distance: float
    error: float
    seconds: float
    timesteps: tuple[float, ...] | None = None
    apart_error: float | None = None

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
    """The fewest evaluations that are no further than the full chain, but for `MARGIN` and two standard errors.

    Those are of the difference where it is known, else of the full chain's distance alone.
    """

    def is_as_good(trial: Trial) -> bool:
        error = reference.error if trial.apart_error is None else trial.apart_error
        return trial.distance - reference.distance <= MARGIN * reference.distance + SIGMAS * error

    return min(filter(is_as_good, trials), key=lambda trial: (trial.nfe, trial.distance))
