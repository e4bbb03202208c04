"""What an engine tells those who watch it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from ddpm_deploy.serve.stepper import Tally

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """What one device did for a batch of samples. seconds: of the network and the update."""

    device: int
    samples: int
    failed: int
    seconds: float
    tally: Tally


Observer = Callable[[Step], object]


class Observers:
    """Functions that are told of each step; one that fails is logged, and does not take the device along."""

    def __init__(self) -> None:
        self._functions: list[Observer] = []

    def add(self, function: Observer) -> None:
        self._functions.append(function)

    def tell(self, step: Step) -> None:
        for function in self._functions:
            try:
                function(step)
            except Exception:
                logger.exception("engine: an observer failed")
