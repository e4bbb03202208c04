"""The training loss: L_simple and its relatives, with L_hybrid for a learned variance."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from ddpm_deploy.schedule import Float, NoiseSchedule, x0_coefficients
from ddpm_deploy.train.bound import VarianceBound

Network = Callable[..., Tensor]


def loss_weights(schedule: NoiseSchedule, prediction: str, min_snr_gamma: float | None) -> Float:
    """(T,) factor of the squared error at each timestep: 1, or min-SNR (Hang et al. 2023, section 3.4).

    Their weight of the clean image's squared error is `min(SNR, gamma)`; the error of the prediction is `p_m` times
    smaller or larger, where `x_0 = p_x x + p_m prediction`.
    """
    if min_snr_gamma is None:
        return np.ones(schedule.T)
    if min_snr_gamma <= 0:
        raise ValueError(f"min_snr_gamma: got {min_snr_gamma}, expected a number above 0")
    _, p_m = x0_coefficients(schedule.alpha, schedule.sigma, prediction)
    return np.asarray(np.minimum((schedule.alpha / schedule.sigma) ** 2, min_snr_gamma) * p_m**2)


def target(prediction: str, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What the network should say at `alpha x0 + sigma eps`. prediction: one of `schedule.PREDICTIONS`."""
    if prediction == "eps":
        return eps
    if prediction == "x0":
        return x0
    return alpha * eps - sigma * x0 if prediction == "v" else eps - x0


class Objective:
    """Squared error of a network's prediction, as L_simple (Ho et al. 2020, eq. 14).

    bound: of a network that also predicts its variance, in a second half of its channels: then this is L_hybrid,
    `L_simple + vlb_weight L_vlb` with the sum L_vlb over all t estimated from one t (Nichol & Dhariwal 2021, eq. 16).
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        prediction: str,
        min_snr_gamma: float | None,
        device: torch.device,
        bound: VarianceBound | None = None,
        vlb_weight: float = 1e-3,
    ) -> None:
        x0_coefficients(schedule.alpha, schedule.sigma, prediction)  # refuses what could never be sampled
        weights = loss_weights(schedule, prediction, min_snr_gamma)
        self.prediction, self.bound, self.share = prediction, bound, vlb_weight * schedule.T
        self.tables = torch.tensor(
            np.stack([schedule.alpha, schedule.sigma, weights]), dtype=torch.float32, device=device
        )

    def __call__(self, network: Network, x0: Tensor, t: Tensor, eps: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """The mean over the batch. x0, eps: (B, *S) float32. t: (B,) int64."""
        rows = self.tables[:, t]
        alpha, sigma = (row.reshape(-1, *[1] * (x0.ndim - 1)) for row in rows[:2])
        x_t = alpha * x0 + sigma * eps
        output = network(x_t, t.float(), **condition)
        expected = (len(x0), x0.shape[1] * (1 if self.bound is None else 2), *x0.shape[2:])
        if output.shape != expected:
            raise ValueError(f"network: got an output of shape {tuple(output.shape)}, expected {expected}")
        prediction, variance = output.float().tensor_split([x0.shape[1]], dim=1)
        error = prediction - target(self.prediction, x0, eps, alpha, sigma)
        loss = (rows[2] * error.square().flatten(1).mean(dim=1)).mean()
        if self.bound is None:
            return loss
        return loss + self.share * self.bound(x0, x_t, prediction, variance, t).mean()
