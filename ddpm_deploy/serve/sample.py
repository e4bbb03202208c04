"""One sample on its way through a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.noise import initial_noise, row_noise
from ddpm_deploy.plan import Plan, Row
from ddpm_deploy.serve.handle import Handle

Array = NDArray[Any]


@dataclass(eq=False)
class Sample:
    """Between two calls of the network, at a row; only `go_on` and `detach` change it.

    number: of the engine, in the order of arrival. index: its place in the request's result. seed, stream: sample
    `stream` of that seed. condition, null: tensors without a batch axis, toward which and away from which it is drawn.
    weights: (N,) of guidance at each row, None is 1. channels: how many of the network's output the plan takes.
    due: what the policy orders by. weight_in_memory: as how many samples of the trained size it counts. stack: the
    states of all samples that the last row was applied to as one, K arrays (B, *S), None before the first row; place:
    which of them is its own. Of the present row: t, what the network is told; program, the row compiled; weight, of
    guidance; lanes, how many places of a batch it takes, two where the network is asked with and without.
    """

    number: int
    handle: Handle
    index: int
    plan: Plan
    seed: int
    stream: int
    shape: tuple[int, ...]
    condition: Mapping[str, Array]
    null: Mapping[str, Array]
    weights: Array | None
    channels: int | None
    due: float
    weight_in_memory: int = 1
    row: int = 0
    stack: list[Array] | None = field(default=None, repr=False)
    place: int = 0

    def __post_init__(self) -> None:
        self.order = self.due, self.number
        self.rows = len(self.plan)
        self._read_row()

    def _read_row(self) -> None:
        self.t: float = self.plan.times[self.row]
        self.program: Row = self.plan.row(self.row)
        self.weight = 1.0 if self.weights is None else float(self.weights[self.row])
        self.lanes = 1 if self.weight in (0.0, 1.0) else 2

    @property
    def left(self) -> int:
        """How many rows are still to come."""
        return self.rows - self.row

    @property
    def image(self) -> Array:
        """After the last row, the sample."""
        assert self.stack is not None
        return self.stack[0][self.place]

    def begin(self) -> None:
        """Draw x_T, if that is still to be done."""
        if self.stack is None:
            self.stack = self.plan.start(initial_noise(self.seed, [self.stream], self.shape))

    def noise(self) -> Array:
        """z of the present row, (1, *S)."""
        return row_noise(self.seed, [self.stream], self.row, self.shape)

    def go_on(self, stack: list[Array], place: int) -> None:
        """The present row was applied, and the next one is."""
        self.stack, self.place = stack, place
        self.row += 1
        if self.row < self.rows:
            self._read_row()

    def detach(self) -> None:
        """Copy the state out of the arrays of a batch that goes on without it."""
        if self.stack is not None:
            self.stack = [np.array(images[self.place : self.place + 1]) for images in self.stack]
            self.place = 0
