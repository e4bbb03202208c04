"""Samples drawn while training, so that a person sees how it goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor, nn

from ddpm_deploy import images
from ddpm_deploy.noise import initial_noise
from ddpm_deploy.plan import Plan

TINY = 1e-6


@torch.no_grad()
def draw_samples(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    plan: Plan,
    x_T: NDArray[np.float32],
    condition: Mapping[str, Tensor],
) -> NDArray[np.float32]:
    """Run a plan without noise on the network with the given weights; x_T and the result are (B, *S).

    A learned variance is left out.
    """
    device = next(iter(weights.values())).device

    def denoise(x: NDArray[Any], t: NDArray[Any]) -> NDArray[Any]:
        inputs = (torch.from_numpy(x).to(device), torch.from_numpy(t).to(device))
        prediction: Tensor = torch.func.functional_call(network, dict(weights), inputs, dict(condition))
        return prediction[:, : x.shape[1]].float().cpu().numpy()

    was_training = network.training
    network.eval()
    try:
        return plan.run(denoise, x_T)
    finally:
        network.train(was_training)


def start_noise(seed: int, count: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """x_T of the samples that a run draws, the same at every step."""
    return initial_noise(seed, range(count), shape)


def grid(samples: NDArray[np.float32], clip: tuple[float, float] | None) -> Image:
    """Samples (N, C, H, W) as one picture. clip: what is black and what is white; None takes the extremes."""
    return images.grid(samples, bounds=clip or (float(samples.min()), float(samples.max()) + TINY))
