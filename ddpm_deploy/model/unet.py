"""The U-Net of the DDPM paper (Ho et al. 2020, appendix B), written to be exported.

Only the batch is free in the exported graph, every reshape leaves it to `-1`, and no branch depends on data.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddpm_deploy.model.blocks import Attention, Downsample, ResidualBlock, Upsample, group_norm
from ddpm_deploy.model.embedding import TimeEmbedding
from ddpm_deploy.model.unet_config import UNetConfig


class UNet(nn.Module):
    """Predicts from a noisy picture and its time; see `UNetConfig`."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.block_out_channels
        self.time = TimeEmbedding(
            channels[0],
            config.time_channels,
            scale=config.time_scale,
            flip_sin_to_cos=config.flip_sin_to_cos,
            freq_shift=config.freq_shift,
        )
        self.label = None if config.label_count is None else nn.Embedding(config.label_count, config.time_channels)
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.down, skips = _down_path(config)
        self.middle = _Middle(channels[-1], config)
        self.up = _up_path(config, skips)
        self.norm_out = group_norm(channels[0], config)
        self.conv_out = nn.Conv2d(channels[0], config.out_channels or config.in_channels, 3, padding=1)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> UNet:
        """Build from the JSON values of `spec()["config"]`."""
        return cls(UNetConfig.from_dict(config))

    def spec(self) -> dict[str, Any]:
        """What `build_network` needs to build this network again, without its weights."""
        return {"kind": "unet", "config": self.config.to_dict()}

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """x: (B, C, H, W). t: (B,) float. labels: (B,) int64, only where the network has classes."""
        if not torch.compiler.is_exporting():
            self._check(x, labels)
        emb = self.time(t)
        if self.label is not None:
            emb = emb + self.label(labels)
        time = functional.silu(emb)
        h = self.conv_in(x)
        skips = [h]
        for level in self.down:
            h = level(h, time, skips)
        h = self.middle(h, time)
        for level in self.up:
            h = level(h, time, skips)
        out: Tensor = self.conv_out(functional.silu(self.norm_out(h)))
        return out

    def _check(self, x: Tensor, labels: Tensor | None) -> None:
        multiple, channels = self.config.size_multiple, self.config.in_channels
        if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % multiple or x.shape[3] % multiple:
            got = tuple(x.shape)
            raise ValueError(f"x: got {got}, expected (B, {channels}, H, W) with H and W multiples of {multiple}")
        if (labels is None) != (self.label is None):
            state = "missing" if labels is None else "given"
            raise ValueError(f"labels: {state}, but the network has num_classes {self.config.num_classes}")


class _Level(nn.Module):
    """The residual blocks of one resolution, each followed by attention where the level attends."""

    def __init__(
        self,
        in_channels: list[int],
        out_channels: int,
        attends: bool,
        resample: Downsample | Upsample | None,
        config: UNetConfig,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(channels, out_channels, config) for channels in in_channels)
        self.attentions = nn.ModuleList(
            Attention(out_channels, config) if attends else nn.Identity() for _ in in_channels
        )
        self.resample = resample


class _DownLevel(_Level):
    """Pushes the output of every block, and of the downsampling, for the way up."""

    def forward(self, h: Tensor, time: Tensor, skips: list[Tensor]) -> Tensor:
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            h = attention(block(h, time))
            skips.append(h)
        if self.resample is not None:
            h = self.resample(h)
            skips.append(h)
        return h


class _UpLevel(_Level):
    """Pops one stored picture before every block."""

    def forward(self, h: Tensor, time: Tensor, skips: list[Tensor]) -> Tensor:
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            h = attention(block(torch.cat([h, skips.pop()], dim=1), time))
        return h if self.resample is None else self.resample(h)


class _Middle(nn.Module):
    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.block_in = ResidualBlock(channels, channels, config)
        self.attention = Attention(channels, config) if config.middle_attention else nn.Identity()
        self.block_out = ResidualBlock(channels, channels, config)

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        out: Tensor = self.block_out(self.attention(self.block_in(h, time)), time)
        return out


def _down_path(config: UNetConfig) -> tuple[nn.ModuleList, list[int]]:
    """The levels on the way down, and the channels of the pictures they store."""
    current = config.block_out_channels[0]
    skips, levels = [current], nn.ModuleList()
    for i, channels in enumerate(config.block_out_channels):
        widths = [current] + [channels] * (config.layers_per_block - 1)
        last = i == len(config.block_out_channels) - 1
        resample = None if last else Downsample(channels, config.downsample_padding)
        levels.append(_DownLevel(widths, channels, config.down_attention[i], resample, config))
        skips += [channels] * (config.layers_per_block + (not last))
        current = channels
    return levels, skips


def _up_path(config: UNetConfig, skips: list[int]) -> nn.ModuleList:
    """The levels on the way up, deepest first, each one block longer than its partner on the way down."""
    current = config.block_out_channels[-1]
    levels = nn.ModuleList()
    for i, channels in enumerate(reversed(config.block_out_channels)):
        widths = []
        for _ in range(config.layers_per_block + 1):
            widths.append(current + skips.pop())
            current = channels
        resample = Upsample(channels) if i < len(config.block_out_channels) - 1 else None
        levels.append(_UpLevel(widths, channels, config.up_attention[i], resample, config))
    return levels
