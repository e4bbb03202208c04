"""The exponential moving average of the weights, which is what gets exported."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class EMA:
    """A float32 copy of the network's state that follows it slowly.

    decay: share of the old average kept in one step; in the first steps it is `(1 + step) / (10 + step)`, so that
    the random initial weights are forgotten. Whole-number buffers are copied.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema_decay: got {decay}, expected a number in [0, 1)")
        self.decay = decay
        self.source = network.state_dict()  # shares memory with the network
        self.state = {name: _copy(tensor) for name, tensor in self.source.items()}
        self._floats = [name for name, tensor in self.state.items() if tensor.is_floating_point()]
        self._others = [name for name in self.state if name not in self._floats]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the network's weights after training step `step`, which counts from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = [self.state[name] for name in self._floats]
        torch._foreach_lerp_(averages, [self.source[name].float() for name in self._floats], 1 - decay)
        for name in self._others:
            self.state[name].copy_(self.source[name])

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a stored average; the names must be the network's."""
        for name, tensor in self.state.items():
            tensor.copy_(state[name])

    def is_finite(self) -> bool:
        """Whether every weight is a finite number; NaN in the network gets here within one step."""
        return all(bool(torch.isfinite(self.state[name]).all()) for name in self._floats)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)
