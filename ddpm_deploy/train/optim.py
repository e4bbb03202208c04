"""The optimiser: how it is made, its learning rate, and its state as tensors and JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_deploy.errors import TrainingError
from ddpm_deploy.train.config import TrainConfig


def make_optimizer(parameters: Iterable[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """Adam or AdamW over the parameters that are to be trained."""
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind([p for p in parameters if p.requires_grad], lr=config.lr, weight_decay=config.weight_decay)


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of training step `step`, which counts from 0."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.lr_schedule == "constant":
        return config.lr * warm
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.lr * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Tensors by `"INDEX.NAME"`, and the JSON-able parameter groups."""
    state = optimizer.state_dict()
    tensors = {f"{index}.{name}": value for index, values in state["state"].items() for name, value in values.items()}
    return tensors, state["param_groups"]


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    """Put back what `optimizer_state` gave; JSON has made lists of the tuples."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    groups = [{name: _tuple(name, value) for name, value in group.items()} for group in groups]
    try:
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    except (ValueError, KeyError) as error:
        raise TrainingError(f"optimizer: its stored state does not fit the network ({error})") from None


def _tuple(name: str, value: Any) -> Any:
    return tuple(value) if isinstance(value, list) and name != "params" else value
