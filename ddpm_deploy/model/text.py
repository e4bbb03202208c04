"""A small text encoder, trained together with the denoiser, and the pair of them as one module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddpm_deploy import strict
from ddpm_deploy.model.blocks import FAR_BELOW
from ddpm_deploy.model.unet import UNet
from ddpm_deploy.model.unet_config import UNetConfig
from ddpm_deploy.tokenizer import PADDING, Tokenizer

MAX_LAYERS = 64
TEXT_CHANNELS = 64


@dataclass(frozen=True)
class TextConfig:
    """Shape of a `TextEncoder`.

    tokens: how many different numbers there are. length: tokens of a text, padding included. channels: of the
    features of one token. pooled_channels: of the features of the whole text.
    """

    tokens: int
    length: int
    channels: int = TEXT_CHANNELS
    pooled_channels: int = TEXT_CHANNELS
    layers: int = 2
    heads: int = 4

    def __post_init__(self) -> None:
        strict.require_counts(self, "tokens", "length", "channels", "pooled_channels", "heads")
        strict.require_counts(self, "layers", most=MAX_LAYERS)
        if self.channels % self.heads:
            raise ValueError(f"heads: got {self.heads}, expected a divisor of {self.channels} channels")


class TextEncoder(nn.Module):
    """A transformer over tokens. Padding gets zeros, so a text of nothing but padding is zeros throughout."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.token = nn.Embedding(config.tokens, config.channels)
        self.position = nn.Parameter(torch.randn(config.length, config.channels) * 0.1)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.channels)
        self.pool = nn.Linear(config.channels, config.pooled_channels, bias=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens: (B, L) int64. Returns text (B, L, channels) and pooled (B, pooled_channels)."""
        present = (tokens != PADDING).to(torch.float32)  # (B, L)
        bias = (1 - present)[:, None, None, :] * FAR_BELOW
        h = self.token(tokens) + self.position
        for layer in self.layers:
            h = layer(h, bias)
        text = self.norm(h) * present[:, :, None]
        mean = text.sum(dim=1) / present.sum(dim=1, keepdim=True).clamp(min=1)
        return text, self.pool(mean)


class _Layer(nn.Module):
    """Self-attention over the tokens that are present, then a perceptron; both on normalised input."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width = config.channels
        self.shape = (config.length, config.heads, width // config.heads)
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)

    def forward(self, h: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (
            part.reshape(-1, *self.shape).transpose(1, 2) for part in self.qkv(self.norm_attention(h)).chunk(3, 2)
        )
        weights = torch.softmax((q * self.shape[2] ** -0.5) @ k.transpose(2, 3) + bias, dim=-1)  # (B, heads, L, L)
        h = h + self.out((weights @ v).transpose(1, 2).reshape(-1, self.shape[0], self.shape[1] * self.shape[2]))
        out: Tensor = h + self.mlp_out(functional.silu(self.mlp_in(self.norm_mlp(h))))
        return out


class TextToImage(nn.Module):
    """A text encoder and the U-Net that reads its features, trained as one; they are exported as two graphs."""

    def __init__(self, encoder: TextEncoder, denoiser: UNet) -> None:
        super().__init__()
        self.encoder, self.denoiser = encoder, denoiser

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TextToImage:
        """Build from the JSON values of `spec()["config"]`."""
        if set(config) != {"encoder", "denoiser"}:
            raise ValueError(f"text_to_image: got keys {sorted(config)}, expected 'denoiser' and 'encoder'")
        encoder = TextEncoder(strict.from_dict(TextConfig, config["encoder"]))
        return cls(encoder, UNet(UNetConfig.from_dict(config["denoiser"])))

    def spec(self) -> dict[str, Any]:
        """What `build_network` needs to build this network again, without its weights."""
        parts = {"encoder": strict.to_dict(self.encoder.config), "denoiser": self.denoiser.config.to_dict()}
        return {"kind": "text_to_image", "config": parts}

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """x: (B, C, H, W). t: (B,) float. tokens: (B, L) int64."""
        text, pooled = self.encoder(tokens)
        out: Tensor = self.denoiser(x, t, text=text, pooled=pooled)
        return out


def text_to_image(tokenizer: Tokenizer, denoiser: UNetConfig) -> TextToImage:
    """Fresh networks for prompts of this tokenizer; as wide as the denoiser's config says."""
    channels, pooled = denoiser.text_channels, denoiser.pooled_channels
    if channels is None or pooled is None:
        raise ValueError(
            "text_channels: got none, expected the width of what the network reads; it cannot read captions"
        )
    text = TextConfig(tokenizer.size, tokenizer.length, channels, pooled)
    return TextToImage(TextEncoder(text), UNet(denoiser))
