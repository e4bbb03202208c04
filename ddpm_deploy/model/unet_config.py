"""The configuration of the U-Net, and the well-known ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ddpm_deploy import strict

MAX_LEVELS = 16
MAX_LAYERS = 64


@dataclass(frozen=True)
class UNetConfig:
    """Shape of a DDPM U-Net.

    out_channels: None means as many as in_channels; a learned variance needs twice as many.
    block_out_channels: channels of each level, from the full picture down; every level but the last halves it.
    down_attention, up_attention: which levels attend, in the order they are run (`up_attention[0]` is the deepest).
    attention_head_dim: channels of one head; None means one head. downsample_padding: see `Downsample`.
    time_scale: factor on t before its embedding, for models whose time is not 0 ... 999.
    num_classes: None, or the number of labels that `forward(..., labels=...)` takes. null_class: one label more,
    `num_classes` itself, stands for no label, as guidance needs it.
    """

    in_channels: int
    block_out_channels: tuple[int, ...]
    out_channels: int | None = None
    layers_per_block: int = 2
    down_attention: tuple[bool, ...] = ()
    up_attention: tuple[bool, ...] = ()
    middle_attention: bool = True
    attention_head_dim: int | None = None
    dropout: float = 0.0
    norm_groups: int = 32
    norm_eps: float = 1e-6
    flip_sin_to_cos: bool = False
    freq_shift: float = 1.0
    downsample_padding: int = 0
    time_scale: float = 1.0
    num_classes: int | None = None
    null_class: bool = False

    def __post_init__(self) -> None:
        strict.require_counts(self, "in_channels", "block_out_channels", "norm_groups")
        strict.require_counts(self, "layers_per_block", most=MAX_LAYERS)
        for name in ("out_channels", "attention_head_dim", "num_classes"):
            if getattr(self, name) is not None:
                strict.require_counts(self, name)
        levels = len(self.block_out_channels)
        if not 1 <= levels <= MAX_LEVELS:
            raise ValueError(f"block_out_channels: got {levels}, expected one number per level, 1 to {MAX_LEVELS}")
        for name in ("down_attention", "up_attention"):
            flags = getattr(self, name) or (False,) * levels
            if len(flags) != levels or not all(isinstance(flag, bool) for flag in flags):
                raise ValueError(f"{name}: got {flags}, expected {levels} times true or false, one per level")
            object.__setattr__(self, name, flags)
        self._check_divisions()
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: got {self.dropout}, expected a number in [0, 1)")
        if self.null_class and self.num_classes is None:
            raise ValueError("null_class: got true without num_classes, expected the number of labels too")
        if self.downsample_padding not in (0, 1):
            raise ValueError(f"downsample_padding: got {self.downsample_padding}, expected 0 or 1")

    def _check_divisions(self) -> None:
        for channels in self.block_out_channels:
            if channels % self.norm_groups:
                raise ValueError(f"block_out_channels: {channels} is not a multiple of norm_groups {self.norm_groups}")
        for channels in self._attending_channels():
            if self.attention_head_dim and channels % self.attention_head_dim:
                raise ValueError(f"attention_head_dim: got {self.attention_head_dim}, expected a divisor of {channels}")
        if self.block_out_channels[0] < 4 or self.block_out_channels[0] % 2:
            raise ValueError(
                f"block_out_channels[0]: got {self.block_out_channels[0]}, expected an even number above 2"
            )

    def _attending_channels(self) -> list[int]:
        down = zip(self.block_out_channels, self.down_attention, strict=True)
        up = zip(reversed(self.block_out_channels), self.up_attention, strict=True)
        middle = [self.block_out_channels[-1]] if self.middle_attention else []
        return [channels for channels, attends in (*down, *up) if attends] + middle

    @property
    def time_channels(self) -> int:
        """Width of the time embedding."""
        return 4 * self.block_out_channels[0]

    @property
    def label_count(self) -> int | None:
        """How many labels are embedded, the one for no label among them; None without classes."""
        return None if self.num_classes is None else self.num_classes + self.null_class

    @property
    def size_multiple(self) -> int:
        """Height and width must be multiples of this."""
        return int(2 ** (len(self.block_out_channels) - 1))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> UNetConfig:
        """Read what `to_dict` wrote; unknown keys are refused."""
        return strict.from_dict(cls, data)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return strict.to_dict(self)

    @classmethod
    def cifar10(cls, *, dropout: float = 0.1) -> UNetConfig:
        """The CIFAR-10 model of Ho et al. 2020: 35.7M parameters, attention at 16x16."""
        return cls(
            in_channels=3,
            block_out_channels=(128, 256, 256, 256),
            down_attention=(False, True, False, False),
            up_attention=(False, False, True, False),
            dropout=dropout,
        )

    @classmethod
    def cifar10_improved(cls, *, dropout: float = 0.3) -> UNetConfig:
        """The size of Nichol & Dhariwal 2021 for CIFAR-10: attention at 16x16 and 8x8 in four heads, with variance."""
        return cls(
            in_channels=3,
            out_channels=6,
            block_out_channels=(128, 256, 256, 256),
            layers_per_block=3,
            down_attention=(False, True, True, False),
            up_attention=(False, True, True, False),
            attention_head_dim=64,
            dropout=dropout,
        )

    @classmethod
    def pictures256(cls) -> UNetConfig:
        """The 256x256 models of Ho et al. 2020 (LSUN, CelebA-HQ): 113.7M parameters, attention at 16x16."""
        return cls(
            in_channels=3,
            block_out_channels=(128, 128, 256, 256, 512, 512),
            down_attention=(False, False, False, False, True, False),
            up_attention=(False, True, False, False, False, False),
        )

    @classmethod
    def digits(cls) -> UNetConfig:
        """A small model for 8x8 grey pictures that trains on a laptop."""
        return cls(
            in_channels=1,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_attention=(False, True),
            up_attention=(True, False),
            norm_groups=8,
        )
