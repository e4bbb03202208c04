"""One term of the variational bound as a loss, from which a network learns its variance and nothing else."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ddpm_deploy.schedule import NoiseSchedule, posterior_coefficients, transition, x0_coefficients

LEAST = 1e-12  # probability of a bin, below which its logarithm is held


class VarianceBound:
    """Term L_t of the bound at each sample's own t, in bits/dim (Nichol & Dhariwal 2021, section 2.1 and 3.1).

    levels: how many values, evenly spaced over `clip`, a number of the data has; then L_0 is the discretised Gaussian
    of Ho et al. 2020, eq. 13. None is any number, and a density.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        prediction: str,
        device: torch.device,
        levels: int | None = None,
        clip: tuple[float, float] | None = None,
    ) -> None:
        if levels is not None and (levels < 2 or clip is None):
            raise ValueError(f"levels: got {levels} with clip {clip}, expected at least 2 over a range, or None")
        before = np.append(1.0, schedule.alpha[:-1]), np.append(0.0, schedule.sigma[:-1])
        _, from_x0, small = posterior_coefficients(*before, schedule.alpha, schedule.sigma)
        _, large = transition(*before, schedule.alpha, schedule.sigma)
        small[0] = small[1] if schedule.T > 1 else large[0]  # it is 0 there, and would have no logarithm
        to_x0 = x0_coefficients(schedule.alpha, schedule.sigma, prediction)
        tables = np.stack([*to_x0, from_x0, np.log(small), np.log(large)])
        self.tables = torch.tensor(tables, dtype=torch.float32, device=device)
        self.levels, self.clip = levels, clip

    def __call__(self, x0: Tensor, x_t: Tensor, m: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """(B,). x0, x_t, m, v: (B, *S), m without its gradient: it is not to follow this loss. t: (B,) int64.

        v: where between log beta~ and log beta the log variance is, -1 for the former and 1 for the latter.
        """
        p_x, p_m, from_x0, small, large = (row.reshape(-1, *[1] * (x0.ndim - 1)) for row in self.tables[:, t])
        f = (v + 1) / 2
        log_variance = f * large + (1 - f) * small
        d = p_x * x_t + p_m * m.detach()
        nats = torch.where(
            (t == 0).reshape(p_x.shape),
            self._decoder(x0, d, log_variance),
            gaussian_kl(from_x0 * (x0 - d), small, log_variance),
        )
        return nats.flatten(1).mean(dim=1) / math.log(2)

    def _decoder(self, x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
        """-log p(x_0 | x_1), of the bin around x0, or of x0 itself."""
        if self.levels is None or self.clip is None:
            return (math.log(2 * math.pi) + log_variance + (x0 - mean) ** 2 * torch.exp(-log_variance)) / 2
        low, high = self.clip
        half, scale = (high - low) / (self.levels - 1) / 2, torch.exp(-log_variance / 2)
        above = torch.special.ndtr((x0 + half - mean) * scale)
        below = torch.special.ndtr((x0 - half - mean) * scale)
        above = torch.where(x0 > high - half, torch.ones_like(above), above)
        below = torch.where(x0 < low + half, torch.zeros_like(below), below)
        return -torch.log((above - below).clamp(min=LEAST))


def gaussian_kl(shift: Tensor, log_variance_q: Tensor, log_variance_p: Tensor) -> Tensor:
    """KL(q || p) in nats of two Gaussians whose means are `shift` apart."""
    ratio = log_variance_q - log_variance_p
    return (torch.exp(ratio) - 1 - ratio + shift**2 * torch.exp(-log_variance_p)) / 2
