"""Algebra on weights before a graph is written: fewer products for the same prediction."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ddpm_deploy.model.blocks import Attention


def fold_attention(network: nn.Module) -> nn.Module:
    """A copy of the network whose single-head attentions have two projections instead of four.

    The score of two pixels is (Wq x + bq) . (Wk y + bk); what does not depend on y leaves the softmax alone, so that
    one projection of x, by Wk^T Wq, is enough. The softmax sums to one, so that the output projection moves onto v.
    """
    folded = copy.deepcopy(network)
    for parent in list(folded.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Attention) and child.head_dim == child.out.out_channels:
                setattr(parent, name, FoldedAttention(child))
    return folded


class FoldedAttention(nn.Module):
    """`Attention` with one head, for inference."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        channels = attention.out.out_channels
        Wq, Wk, Wv = torch.chunk(_matrix(attention.qkv), 3)
        bq, _, bv = torch.chunk(_bias(attention.qkv), 3)
        Wo, scale = _matrix(attention.out), channels**-0.5
        self.norm = attention.norm
        self.project = nn.Conv2d(channels, 2 * channels, 1)
        weight = torch.cat([scale * Wk.T @ Wq, Wo @ Wv])
        self.project.weight.data = weight[:, :, None, None].float()
        self.project.bias.data = torch.cat([scale * Wk.T @ bq, Wo @ bv + _bias(attention.out)]).float()  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        channels, height, width = x.shape[1:]
        k = self.norm(x)
        q, v = (part.reshape(-1, channels, height * width) for part in self.project(k).chunk(2, dim=1))
        weights = torch.softmax(q.transpose(1, 2) @ k.reshape(-1, channels, height * width), dim=-1)  # (B, HW, HW)
        out: Tensor = x + (v @ weights.transpose(1, 2)).reshape(-1, channels, height, width)
        return out


def _matrix(conv: nn.Conv2d) -> Tensor:
    return conv.weight.detach().double()[:, :, 0, 0]


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias.detach().double()
