"""Dropping conditions in training, so that the network also learns to do without them (Ho & Salimans 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ddpm_deploy.bundle import Condition


def drop_conditions(given: Mapping[str, Tensor], known: Sequence[Condition], dropped: Tensor) -> dict[str, Tensor]:
    """The conditions with their null values in the chosen samples; those without a null stay as they are.

    given: (B, ...) each. dropped: (B,) bool. A sample loses all that can be dropped at once, as guidance needs it.
    """
    nulls = {condition.name: condition.null for condition in known}
    return {name: _filled(value, nulls[name], dropped) for name, value in given.items()}


def _filled(value: Tensor, null: int | float | None, dropped: Tensor) -> Tensor:
    if null is None:
        return value
    return value.masked_fill(dropped.reshape(-1, *[1] * (value.ndim - 1)), null)
