"""What samples are to show: lists of labels, prompts and other conditions, taken in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.bundle import Manifest
from ddpm_deploy.encoder import PROMPT
from ddpm_deploy.labels import label_numbers

Turns = Mapping[str, NDArray[Any]]  # (k, ...) each, k its own; prompts are an array of str objects


def turns_of_words(labels: Sequence[str], prompts: Sequence[str], manifest: Manifest) -> dict[str, NDArray[Any]]:
    """Labels by name or number, and prompts; none of a kind is no turn of it. Raises ValueError."""
    turns: dict[str, NDArray[Any]] = {}
    if labels:
        name, numbers = label_numbers(labels, manifest)
        turns[name] = numbers
    if prompts:
        turns[PROMPT] = np.array(prompts, object)
    return turns


def turn_of_rows(name: str, array: NDArray[Any], n: int, manifest: Manifest) -> NDArray[Any]:
    """A condition with a row for each of n samples, or one for all of them; ValueError for another number of rows."""
    shapes = {condition.name: condition.shape for condition in manifest.conditions}
    if array.shape == shapes.get(name):
        return array[None]
    if not array.ndim or len(array) != n:
        raise ValueError(f"condition {name!r}: got shape {array.shape}, expected {n} rows, one for each sample")
    return array


def taken(turns: Turns, positions: range) -> dict[str, Any]:
    """The conditions of some samples, as `Sampler.sample` takes them: rows, or one value where all have the same."""
    where = np.arange(positions.start, positions.stop)
    return {name: turn[0] if len(turn) == 1 else turn[where % len(turn)] for name, turn in turns.items()}
