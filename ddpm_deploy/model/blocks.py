"""The blocks of the U-Net: residual block, attention, down- and upsampling."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddpm_deploy.model.unet_config import UNetConfig

FAR_BELOW = -1e4  # added to a logit: its weight becomes exactly 0, and half precision can hold it


class Text(NamedTuple):
    """What cross-attention reads. features: (B, L, text_channels). absent: (B, 1, L, 1), `FAR_BELOW` at padding."""

    features: Tensor
    absent: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Text:
        """Find the padding: the tokens whose features are all zero."""
        padding = features.abs().amax(dim=2) == 0
        return cls(features, padding.to(features.dtype)[:, None, :, None] * FAR_BELOW)


def group_norm(channels: int, config: UNetConfig) -> nn.GroupNorm:
    """The normalisation used throughout one network."""
    return nn.GroupNorm(config.norm_groups, channels, eps=config.norm_eps)


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions with the time embedding added between them."""

    def __init__(self, in_channels: int, out_channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.norm_in = group_norm(in_channels, config)
        self.conv_in = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time = nn.Linear(config.time_channels, out_channels)
        self.norm_out = group_norm(out_channels, config)
        self.dropout = nn.Dropout(config.dropout)
        self.conv_out = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x: (B, C, H, W). time: (B, time_channels), already through SiLU."""
        h = self.conv_in(functional.silu(self.norm_in(x))) + self.time(time)[:, :, None, None]
        h = self.conv_out(self.dropout(functional.silu(self.norm_out(h))))
        out: Tensor = self.shortcut(x) + h
        return out


class Attention(nn.Module):
    """Self-attention over all pixels, as 1x1 convolutions, so that the picture never leaves its NCHW layout."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.head_dim = config.attention_head_dim or channels
        self.norm = group_norm(channels, config)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        channels, height, width = x.shape[1:]
        heads = channels // self.head_dim
        q, k, v = (
            part.reshape(-1, heads, self.head_dim, height * width) for part in self.qkv(self.norm(x)).chunk(3, dim=1)
        )
        weights = torch.softmax((q * self.head_dim**-0.5).transpose(2, 3) @ k, dim=-1)  # (B, heads, HW, HW)
        mixed = (v @ weights.transpose(2, 3)).reshape(-1, channels, height, width)
        out: Tensor = x + self.out(mixed)
        return out


class CrossAttention(nn.Module):
    """Attention of all pixels to the tokens of a text. Tokens of zeros are padding, and ignored."""

    def __init__(self, channels: int, text_channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.head_dim = config.attention_head_dim or channels
        self.norm = group_norm(channels, config)
        self.query = nn.Conv2d(channels, channels, 1)
        self.key_value = nn.Linear(text_channels, 2 * channels, bias=False)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, text: Text) -> Tensor:
        """x: (B, C, H, W)."""
        channels, height, width = x.shape[1:]
        heads, length = channels // self.head_dim, text.features.shape[1]
        q = self.query(self.norm(x)).reshape(-1, heads, self.head_dim, height * width)
        k, v = (
            part.reshape(-1, length, heads, self.head_dim).transpose(1, 2)
            for part in self.key_value(text.features).chunk(2, dim=2)
        )
        logits = k @ (q * self.head_dim**-0.5) + text.absent  # (B, heads, L, HW)
        mixed = (v.transpose(2, 3) @ torch.softmax(logits, dim=2)).reshape(-1, channels, height, width)
        out: Tensor = x + self.out(mixed)
        return out


class Downsample(nn.Module):
    """Halve the picture with a strided convolution.

    padding: 1 pads all sides; 0 pads right and bottom only, as the original TensorFlow code did.
    """

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.pad_corner = padding == 0
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W), H and W even."""
        out: Tensor = self.conv(functional.pad(x, (0, 1, 0, 1)) if self.pad_corner else x)
        return out


class Upsample(nn.Module):
    """Double the picture by repeating pixels, then smooth with a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        out: Tensor = self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out
