"""Small networks for samples that are not pictures: points `(D,)` and signals `(C, L)`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from ddpm_deploy import strict
from ddpm_deploy.model.embedding import TimeEmbedding

MAX_LAYERS = 64


@dataclass(frozen=True)
class PointConfig:
    """Shape of a `PointNet`: dim is D of the points, hidden the width, layers the number of residual blocks."""

    dim: int
    hidden: int = 128
    layers: int = 3
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        strict.require_counts(self, "dim", "hidden")
        strict.require_counts(self, "layers", most=MAX_LAYERS)
        _require_even(self.hidden)


@dataclass(frozen=True)
class SignalConfig:
    """Shape of a `SignalNet`: channels is C of the signals; block i sees a neighbourhood of `2^i` samples."""

    channels: int
    hidden: int = 64
    layers: int = 4
    kernel_size: int = 3
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        strict.require_counts(self, "channels", "hidden", "kernel_size")
        strict.require_counts(self, "layers", most=MAX_LAYERS)
        _require_even(self.hidden)
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: got {self.kernel_size}, expected an odd number")


class PointNet(nn.Module):
    """A residual perceptron for points."""

    def __init__(self, config: PointConfig) -> None:
        super().__init__()
        self.config = config
        self.time = TimeEmbedding(config.hidden, config.hidden, scale=config.time_scale)
        self.inward = nn.Linear(config.dim, config.hidden)
        self.blocks = nn.ModuleList(_PointBlock(config.hidden) for _ in range(config.layers))
        self.outward = nn.Linear(config.hidden, config.dim)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> PointNet:
        """Build from the JSON values of `spec()["config"]`."""
        return cls(strict.from_dict(PointConfig, config))

    def spec(self) -> dict[str, Any]:
        """What `build_network` needs to build this network again, without its weights."""
        return {"kind": "mlp", "config": strict.to_dict(self.config)}

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x: (B, D). t: (B,) float."""
        time = self.time(t)
        h = self.inward(x)
        for block in self.blocks:
            h = block(h, time)
        out: Tensor = self.outward(functional.silu(h))
        return out


class _PointBlock(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear_in = nn.Linear(hidden, hidden)
        self.linear_out = nn.Linear(hidden, hidden)

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        out: Tensor = h + self.linear_out(functional.silu(self.linear_in(functional.silu(h)) + time))
        return out


class SignalNet(nn.Module):
    """A residual network of dilated 1-D convolutions for signals of any length."""

    def __init__(self, config: SignalConfig) -> None:
        super().__init__()
        self.config = config
        hidden, size = config.hidden, config.kernel_size
        self.time = TimeEmbedding(hidden, hidden, scale=config.time_scale)
        self.inward = nn.Conv1d(config.channels, hidden, size, padding=size // 2)
        self.blocks = nn.ModuleList(_SignalBlock(hidden, size, 2**i) for i in range(config.layers))
        self.outward = nn.Conv1d(hidden, config.channels, size, padding=size // 2)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> SignalNet:
        """Build from the JSON values of `spec()["config"]`."""
        return cls(strict.from_dict(SignalConfig, config))

    def spec(self) -> dict[str, Any]:
        """What `build_network` needs to build this network again, without its weights."""
        return {"kind": "conv1d", "config": strict.to_dict(self.config)}

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x: (B, C, L). t: (B,) float."""
        time = self.time(t)[:, :, None]
        h = self.inward(x)
        for block in self.blocks:
            h = block(h, time)
        out: Tensor = self.outward(functional.silu(h))
        return out


class _SignalBlock(nn.Module):
    def __init__(self, hidden: int, kernel_size: int, dilation: int) -> None:
        super().__init__()
        padding = dilation * (kernel_size // 2)
        self.conv_in = nn.Conv1d(hidden, hidden, kernel_size, padding=padding, dilation=dilation)
        self.conv_out = nn.Conv1d(hidden, hidden, kernel_size, padding=kernel_size // 2)

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        out: Tensor = h + self.conv_out(functional.silu(self.conv_in(functional.silu(h)) + time))
        return out


def _require_even(hidden: int) -> None:
    if hidden % 2 or hidden < 4:
        raise ValueError(f"hidden: got {hidden}, expected an even number, at least 4")
