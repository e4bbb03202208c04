"""Calls of the network for many lanes: cut and padded to buckets, and going on around what fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.backends.memory import is_out_of_memory
from ddpm_deploy.errors import BackendError
from ddpm_deploy.serve.buckets import Buckets

Array = NDArray[Any]
Feeds = Mapping[str, Array]
Piece = tuple[int, Array | Exception]


def evaluate(
    run: Callable[[Feeds], Array], feeds: Feeds, buckets: Buckets
) -> tuple[Array | None, dict[int, Exception]]:
    """The raw output (L, *S') and the error of each lane that has none, whose numbers mean nothing.

    A call that fails is repeated in halves, so that a lane fails alone; where memory was lacking, the buckets shrink
    too. The output is None where no lane has any. run: the feeds of one bucket -> raw output.
    """
    pieces = list(_pieces(run, feeds, len(feeds["t"]), buckets))
    outputs = [output for _, output in pieces if not isinstance(output, Exception)]
    if len(outputs) == len(pieces):
        return outputs[0] if len(outputs) == 1 else np.concatenate(outputs), {}
    errors, begin = {}, 0
    filled = []
    for count, output in pieces:
        if isinstance(output, Exception):
            errors.update(dict.fromkeys(range(begin, begin + count), output))
            output = np.zeros((count, *outputs[0].shape[1:]), np.float32) if outputs else np.zeros(0, np.float32)
        filled.append(output)
        begin += count
    return (np.concatenate(filled) if outputs else None), errors


def _pieces(run: Callable[[Feeds], Array], feeds: Feeds, count: int, buckets: Buckets) -> Iterator[Piece]:
    """(how many lanes, their output or their error), in the order of the lanes."""
    if count > buckets.limit:
        yield from _split(run, feeds, count, buckets.limit, buckets)
        return
    size = buckets.padded(count)
    try:
        output = run(feeds if size == count else {name: _padded(array, size) for name, array in feeds.items()})
    except (BackendError, MemoryError) as error:
        if is_out_of_memory(error):
            buckets.shrink(size)
        if count == 1:
            yield 1, error
        else:
            yield from _split(run, feeds, count, count // 2, buckets)
        return
    buckets.succeeded(size)
    yield count, output[:count]


def _split(run: Callable[[Feeds], Array], feeds: Feeds, count: int, first: int, buckets: Buckets) -> Iterator[Piece]:
    head = {name: array[:first] for name, array in feeds.items()}
    tail = {name: array[first:] for name, array in feeds.items()}
    yield from _pieces(run, head, first, buckets)
    yield from _pieces(run, tail, count - first, buckets)


def _padded(array: Array, size: int) -> Array:
    """Repeat the last lane, which is a valid input of any graph."""
    return array[np.minimum(np.arange(size), len(array) - 1)]
