"""The timesteps of a plan with their alpha, sigma and lambda, for the solvers to compute with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ddpm_deploy.schedule import Float, NoiseSchedule
from ddpm_deploy.spacing import check_timesteps

Factors = dict[str, float]


@dataclass(frozen=True)
class Grid:
    """The N timesteps with their tables of N+1 entries; the last is the clean image."""

    t: Float
    alpha: Float
    sigma: Float
    lam: Float

    @classmethod
    def of(cls, schedule: NoiseSchedule, timesteps: ArrayLike) -> Grid:
        t = check_timesteps(schedule, timesteps)
        alpha, sigma = schedule.at(t)
        alpha, sigma = np.append(alpha, 1.0), np.append(sigma, 0.0)
        with np.errstate(divide="ignore"):
            return cls(t, alpha, sigma, np.log(alpha) - np.log(sigma))

    def __len__(self) -> int:
        return len(self.t)

    def ddim(self, i: int) -> Factors:
        """The deterministic first-order step from i to i+1, which every solver here falls back to."""
        ratio = float(self.sigma[i + 1] / self.sigma[i])
        return {"x": ratio, "d": float(self.alpha[i + 1] - ratio * self.alpha[i])}

    def eps(self, i: int) -> Factors:
        """The noise that the predicted clean image means, `(x - alpha d) / sigma`."""
        return {"x": float(1 / self.sigma[i]), "d": float(-self.alpha[i] / self.sigma[i])}

    def order(self, i: int, order: int) -> int:
        """The order that the history allows in the step from i.

        1 for the jump to the clean image; a step with alpha = 0 has infinite lambda and cannot be interpolated.
        """
        if i + 1 == len(self):
            return 1
        return max(1, min(order, int(np.isfinite(self.lam[: i + 1]).sum())))
