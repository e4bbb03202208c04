"""The sinusoidal embedding of time, shared by all networks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

MAX_PERIOD = 10_000.0


class TimeEmbedding(nn.Module):
    """Sine and cosine of `scale * t` at geometric frequencies, then a two-layer perceptron (Ho et al. 2020, app. B).

    flip_sin_to_cos: cosines first. freq_shift: 1 ends the frequencies exactly at 1/10000, 0 just above.
    """

    frequencies: Tensor

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        scale: float = 1.0,
        flip_sin_to_cos: bool = False,
        freq_shift: float = 1.0,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.flip_sin_to_cos = flip_sin_to_cos
        half = channels // 2
        exponent = -math.log(MAX_PERIOD) * torch.arange(half, dtype=torch.float32) / (half - freq_shift)
        self.register_buffer("frequencies", torch.exp(exponent), persistent=False)
        self.linear_in = nn.Linear(channels, out_channels)
        self.linear_out = nn.Linear(out_channels, out_channels)

    def forward(self, t: Tensor) -> Tensor:
        """t: (B,) float. Returns (B, out_channels)."""
        angle = self.scale * t[:, None] * self.frequencies
        waves = (torch.cos(angle), torch.sin(angle)) if self.flip_sin_to_cos else (torch.sin(angle), torch.cos(angle))
        hidden: Tensor = self.linear_out(nn.functional.silu(self.linear_in(torch.cat(waves, dim=1))))
        return hidden
