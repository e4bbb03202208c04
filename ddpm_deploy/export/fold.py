"""Algebra on weights before a graph is written: fewer products for the same prediction."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ddpm_deploy.model.blocks import Attention


def fold_attention(network: nn.Module) -> nn.Module:
    """A copy of the network whose single-head attentions have two projections instead of four.

    The score of two pixels is (Wq x + bq) . (Wk y + bk); what does not depend on y leaves the softmax alone, so that
    one projection of x, by Wk^T Wq, is enough. The softmax sums to one, so that values may be mixed before they are
    projected, and the output projection joins theirs. Nothing is cut into parts, which runtimes do by copying.
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
        self.score = _conv(scale * Wk.T @ Wq, scale * Wk.T @ bq)
        self.value = _conv(Wo @ Wv, Wo @ bv + _bias(attention.out))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        channels, height, width = x.shape[1:]
        normed = self.norm(x)
        y, q = (part.reshape(-1, channels, height * width) for part in (normed, self.score(normed)))
        weights = torch.softmax(q.transpose(1, 2) @ y, dim=-1)  # (B, HW, HW)
        mixed = (y @ weights.transpose(1, 2)).reshape(-1, channels, height, width)
        out: Tensor = x + self.value(mixed)
        return out


def _conv(matrix: Tensor, bias: Tensor) -> nn.Conv2d:
    """The 1x1 convolution that multiplies every pixel by a matrix."""
    conv = nn.Conv2d(matrix.shape[1], matrix.shape[0], 1)
    conv.weight.data, conv.bias.data = matrix[:, :, None, None].float(), bias.float()  # type: ignore[union-attr]
    return conv


def _matrix(conv: nn.Conv2d) -> Tensor:
    return conv.weight.detach().double()[:, :, 0, 0]


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias.detach().double()
