"""The networks of a robot diffusion policy (Chi et al. 2023): a 1-D U-Net over chunks of actions, and an encoder.

The U-Net is laid out as the authors': the first level's picture is not handed over to the way up. SiLU stands in for
their Mish, as the runtimes fuse `x sigmoid(x)` and expand Mish into four operators.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddpm_deploy import strict
from ddpm_deploy.model.embedding import TimeEmbedding

CONDITION = "global_cond"


@dataclass(frozen=True)
class PolicyConfig:
    """Shape of a `PolicyNet`.

    action_dim: channels of a chunk. cond_dim: size of `global_cond`, None where time alone steers the network.
    channels: of each level, from the full horizon down; every level but the last halves it.
    time_channels: width of the time embedding. time_scale: factor on t before it.
    """

    action_dim: int
    cond_dim: int | None = None
    channels: tuple[int, ...] = (256, 512, 1024)
    time_channels: int = 256
    kernel_size: int = 5
    norm_groups: int = 8
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        strict.require_counts(self, "action_dim", "channels", "time_channels", "kernel_size", "norm_groups")
        if self.cond_dim is not None:
            strict.require_counts(self, "cond_dim")
        if not self.channels:
            raise ValueError("channels: got none, expected one number per level")
        for channels in self.channels:
            if channels % self.norm_groups:
                raise ValueError(f"channels: {channels} is not a multiple of norm_groups {self.norm_groups}")
        if self.time_channels < 4 or self.time_channels % 2:
            raise ValueError(f"time_channels: got {self.time_channels}, expected an even number, at least 4")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: got {self.kernel_size}, expected an odd number")

    @property
    def horizon_multiple(self) -> int:
        """The horizon must be a multiple of this."""
        return int(2 ** (len(self.channels) - 1))


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of an `ObservationEncoder`.

    mean, std: statistics of each observed channel, in its own units; none where observations come normalised.
    """

    obs_horizon: int
    obs_dim: int
    cond_dim: int
    hidden: int = 256
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        strict.require_counts(self, "obs_horizon", "obs_dim", "cond_dim", "hidden")
        for name, plain in (("mean", 0.0), ("std", 1.0)):
            values = getattr(self, name) or (plain,) * self.obs_dim
            if len(values) != self.obs_dim:
                raise ValueError(f"{name}: got {len(values)} numbers, expected {self.obs_dim}, one for each channel")
            object.__setattr__(self, name, values)
        if min(self.std) <= 0:
            raise ValueError(f"std: got {self.std}, expected positive numbers")


class PolicyNet(nn.Module):
    """Predicts from a noisy chunk of actions, its time and a condition that modulates every block; `PolicyConfig`."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        first, last = config.channels[0], config.channels[-1]
        self.time = TimeEmbedding(config.time_channels, config.time_channels, scale=config.time_scale)
        widths = [config.action_dim, *config.channels]
        self.down = nn.ModuleList(_Level(a, b, config) for a, b in pairwise(widths))
        self.shrink = nn.ModuleList(nn.Conv1d(c, c, 3, stride=2, padding=1) for c in config.channels[:-1])
        self.middle = _Level(last, last, config)
        pairs = list(zip(config.channels[:-1], config.channels[1:], strict=True))[::-1]
        self.up = nn.ModuleList(_Level(2 * deep, shallow, config) for shallow, deep in pairs)
        self.grow = nn.ModuleList(nn.ConvTranspose1d(c, c, 4, stride=2, padding=1) for c, _ in pairs)
        self.last = _ConvBlock(first, first, config)
        self.outward = nn.Conv1d(first, config.action_dim, 1)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> PolicyNet:
        """Build from the JSON values of `spec()["config"]`."""
        return cls(strict.from_dict(PolicyConfig, config))

    def spec(self) -> dict[str, Any]:
        """What `build_network` needs to build this network again, without its weights."""
        return {"kind": "policy", "config": strict.to_dict(self.config)}

    def forward(self, x: Tensor, t: Tensor, global_cond: Tensor | None = None) -> Tensor:
        """x: (B, action_dim, horizon). t: (B,) float. global_cond: (B, cond_dim), only where the network has one."""
        if not torch.compiler.is_exporting():
            self._check(x, global_cond)
        steer = self.time(t)
        if global_cond is not None:
            steer = torch.cat([steer, global_cond], dim=1)
        steer = functional.silu(steer)
        h, skips = x, []
        for i, level in enumerate(self.down):
            h = level(h, steer)
            skips.append(h)
            if i < len(self.shrink):
                h = self.shrink[i](h)
        h = self.middle(h, steer)
        for level, grow in zip(self.up, self.grow, strict=True):
            h = grow(level(torch.cat([h, skips.pop()], dim=1), steer))
        out: Tensor = self.outward(self.last(h))
        return out

    def _check(self, x: Tensor, global_cond: Tensor | None) -> None:
        channels, multiple = self.config.action_dim, self.config.horizon_multiple
        if x.ndim != 3 or x.shape[1] != channels or x.shape[2] % multiple:
            got = tuple(x.shape)
            raise ValueError(f"x: got {got}, expected (B, {channels}, horizon) with horizon a multiple of {multiple}")
        if (global_cond is None) != (self.config.cond_dim is None):
            state = "missing" if global_cond is None else "given"
            raise ValueError(f"{CONDITION}: {state}, but the network has cond_dim {self.config.cond_dim}")


class ObservationEncoder(nn.Module):
    """From the last observations, in their own units, to the condition of a `PolicyNet`: a perceptron."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.tensor(config.mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(config.std, dtype=torch.float32), persistent=False)
        self.linear_in = nn.Linear(config.obs_horizon * config.obs_dim, config.hidden)
        self.linear_out = nn.Linear(config.hidden, config.cond_dim)

    def forward(self, observation: Tensor) -> Tensor:
        """observation: (B, obs_horizon, obs_dim) float32. Returns (B, cond_dim)."""
        h = ((observation - self.mean) / self.std).reshape(-1, self.config.obs_horizon * self.config.obs_dim)
        out: Tensor = self.linear_out(functional.silu(self.linear_in(h)))
        return out


class _Level(nn.Module):
    """The two residual blocks of one resolution."""

    def __init__(self, in_channels: int, out_channels: int, config: PolicyConfig) -> None:
        super().__init__()
        self.first = _ResidualBlock(in_channels, out_channels, config)
        self.second = _ResidualBlock(out_channels, out_channels, config)

    def forward(self, h: Tensor, steer: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(h, steer), steer)
        return out


class _ResidualBlock(nn.Module):
    """Two convolutions with FiLM between them: a scale and a shift of each channel (Perez et al. 2018)."""

    def __init__(self, in_channels: int, out_channels: int, config: PolicyConfig) -> None:
        super().__init__()
        self.block_in = _ConvBlock(in_channels, out_channels, config)
        self.film = nn.Linear(config.time_channels + (config.cond_dim or 0), 2 * out_channels)
        self.block_out = _ConvBlock(out_channels, out_channels, config)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv1d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, steer: Tensor) -> Tensor:
        """x: (B, C, L). steer: (B, time_channels + cond_dim), already through SiLU."""
        scale, shift = self.film(steer)[:, :, None].chunk(2, dim=1)
        out: Tensor = self.shortcut(x) + self.block_out(self.block_in(x) * scale + shift)
        return out


class _ConvBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, config: PolicyConfig) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, out_channels, config.kernel_size, padding=config.kernel_size // 2)
        self.norm = nn.GroupNorm(config.norm_groups, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(self.norm(self.conv(x)))


def denoiser(*, seed: int = 0, **options: Any) -> PolicyNet:
    """A `PolicyNet` with random weights, for the exporter; options are those of `PolicyConfig`."""
    with _seeded(seed):
        return PolicyNet(strict.from_dict(PolicyConfig, options))


def encoder(*, seed: int = 0, **options: Any) -> ObservationEncoder:
    """An `ObservationEncoder` with random weights, for the exporter; options are those of `EncoderConfig`."""
    with _seeded(seed):
        return ObservationEncoder(strict.from_dict(EncoderConfig, options))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw from a seed of its own, and leave torch's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
