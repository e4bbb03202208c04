"""Samples drawn while training, so that a person sees how it goes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ddpm_deploy.noise import initial_noise
from ddpm_deploy.plan import Plan

PICTURE_CHANNELS = (1, 3)
MIN_SIDE = 32


@torch.no_grad()
def draw_samples(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    plan: Plan,
    x_T: NDArray[np.float32],
    condition: Mapping[str, Tensor],
) -> NDArray[np.float32]:
    """Run a plan without noise on the network with the given weights; x_T and the result are (B, *S)."""
    device = next(iter(weights.values())).device

    def denoise(x: NDArray[Any], t: NDArray[Any]) -> NDArray[Any]:
        inputs = (torch.from_numpy(x).to(device), torch.from_numpy(t).to(device))
        prediction: Tensor = torch.func.functional_call(network, dict(weights), inputs, dict(condition))
        return prediction.float().cpu().numpy()

    was_training = network.training
    network.eval()
    try:
        return plan.run(denoise, x_T)
    finally:
        network.train(was_training)


def start_noise(seed: int, count: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """x_T of the samples that a run draws, the same at every step."""
    return initial_noise(seed, range(count), shape)


def is_picture(shape: tuple[int, ...]) -> bool:
    """Whether samples of this shape can be shown."""
    return len(shape) == 3 and shape[0] in PICTURE_CHANNELS


def grid(samples: NDArray[np.float32], clip: tuple[float, float] | None) -> NDArray[np.uint8]:
    """Samples (N, C, H, W) side by side as one picture (H, W, C) uint8, small ones enlarged.

    clip: what is black and what is white; None takes the lowest and the highest value.
    """
    low, high = clip or (float(samples.min()), float(samples.max()))
    pixels = np.rint(np.clip((samples - low) / max(high - low, 1e-12), 0, 1) * 255).astype(np.uint8)
    zoom = max(1, MIN_SIDE // pixels.shape[2])
    pixels = np.pad(pixels.repeat(zoom, 2).repeat(zoom, 3), ((0, 0), (0, 0), (1, 1), (1, 1)))
    columns = math.isqrt(len(pixels) - 1) + 1
    pixels = np.pad(pixels, ((0, -len(pixels) % columns), (0, 0), (0, 0), (0, 0)))
    _, C, H, W = pixels.shape
    return pixels.reshape(-1, columns, C, H, W).transpose(0, 3, 1, 4, 2).reshape(-1, columns * W, C)


def save_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write (H, W, C) uint8 as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(path)
