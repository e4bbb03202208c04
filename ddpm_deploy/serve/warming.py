"""The first calls of a device: which batch sizes it has the memory for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from ddpm_deploy.backends.memory import is_out_of_memory
from ddpm_deploy.errors import BackendError

FEW = 8

logger = logging.getLogger(__name__)


def largest_fitting(sizes: Sequence[int], evaluate: Callable[[int], object]) -> int:
    """Evaluate the smallest and the largest batch, or, if there are few, all; the largest that memory suffices for.

    sizes: ascending. Raises what the smallest failed with, and of the others what is no lack of memory.
    """
    if len(sizes) <= FEW:
        return _last_good(sizes, evaluate)
    if _last_good((sizes[0], sizes[-1]), evaluate) == sizes[-1]:
        return sizes[-1]
    return _last_good(_doubling(sizes), evaluate)


def _last_good(sizes: Sequence[int], evaluate: Callable[[int], object]) -> int:
    good = 0
    for size in sizes:
        try:
            evaluate(size)
        except (BackendError, MemoryError) as error:
            if not good or not is_out_of_memory(error):
                raise
            logger.warning("engine: memory does not suffice for a batch of %d", size)
            break
        good = size
    return good


def _doubling(sizes: Sequence[int]) -> list[int]:
    """The first of the sizes, and each that is at least twice the last."""
    kept: list[int] = []
    for size in sizes:
        if not kept or size >= 2 * kept[-1]:
            kept.append(size)
    return kept
