"""Passes over arrays far larger than the caches, for the memory bandwidth; each byte read or written counts once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np

from ddpm_deploy.bench.products import Unavailable, library_threads

Call = Callable[[], object]

TIMES_CACHE = 4
MIN_BYTES, MAX_BYTES = 64 * 2**20, 2**30  # of one array
MEMORY_PART = 16  # of the memory, one array takes at most one part


@dataclass(frozen=True)
class Pass:
    """One way over the arrays. size_bytes: that one call reads and writes."""

    library: str
    name: str
    size_bytes: int
    call: Call


def array_bytes(cache_bytes: int | None, memory_bytes: int | None) -> int:
    """How large one array is made."""
    wanted = TIMES_CACHE * cache_bytes if cache_bytes else MAX_BYTES
    return max(MIN_BYTES, min(wanted, MAX_BYTES, (memory_bytes or MAX_BYTES * MEMORY_PART) // MEMORY_PART))


@contextmanager
def cpu_passes(size_bytes: int, threads: int) -> Iterator[list[Pass]]:
    """Read, copy and triad (a = b + 3 c) over three float32 arrays, in numpy and, where it is installed, torch."""
    a, b, c = (np.full(size_bytes // 4, value, np.float32) for value in (0, 1, 2))
    with ThreadPoolExecutor(threads) as pool, library_threads(threads):
        passes = _numpy_passes(a, b, pool, threads)
        with suppress(Unavailable):
            passes += _torch_passes(a, b, c)
        yield passes


def _numpy_passes(a: np.ndarray, b: np.ndarray, pool: ThreadPoolExecutor, threads: int) -> list[Pass]:
    """Each thread has a part of its own; numpy lets go of the interpreter meanwhile."""
    parts = list(zip(np.array_split(a, threads), np.array_split(b, threads), strict=True))
    return [
        Pass("numpy", "read", b.nbytes, lambda: list(pool.map(lambda part: part[1].max(), parts))),
        Pass("numpy", "copy", 2 * b.nbytes, lambda: list(pool.map(lambda part: np.copyto(*part), parts))),
    ]


def _torch_passes(*arrays: np.ndarray) -> list[Pass]:
    try:
        import torch
    except ImportError as error:
        raise Unavailable("torch is not installed") from error
    a, b, c = map(torch.from_numpy, arrays)
    return [
        Pass("torch", "copy", 2 * b.nbytes, lambda: a.copy_(b)),
        Pass("torch", "triad", 3 * b.nbytes, lambda: torch.add(b, c, alpha=3, out=a)),
    ]
