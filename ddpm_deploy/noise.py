"""Gaussian noise that is the same on every runtime, device and batch size.

Each sample has its own streams, a function of (seed, sample, row) only. With numpy's Philox4x64-10,

    r = Philox(key=[seed, sample], counter=[0, 0, row, stream]).random_raw(ceil(n / 2))

and hi, lo the 32-bit halves of r[p], the Box-Muller transform gives two numbers,

    u = (hi + 1) 2^-32,  a = 2 pi lo 2^-32,  z[2p] = sqrt(-2 ln u) cos a,  z[2p+1] = sqrt(-2 ln u) sin a

in float64, rounded once to float32. Unlike numpy's own normals, nothing is rejected, so a GPU can follow it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

INITIAL, STEP = 0, 1  # the streams: x_T, and z of a plan row
_WORD = 2**64
_HALF = 2.0**-32
_TURN = 2 * math.pi * _HALF
_BITS, _TWO_BITS = np.uint64(11), np.uint64(22)
_MASK, _TOP_MASK = np.uint64(2**11 - 1), np.uint64(2**10 - 1)


def initial_noise(seed: int, samples: Sequence[int], shape: tuple[int, ...]) -> Float32:
    """x_T: (B, *shape) float32, one picture of noise for each sample index."""
    return _batch(seed, samples, 0, INITIAL, shape)


def row_noise(seed: int, samples: Sequence[int], row: int, shape: tuple[int, ...]) -> Float32:
    """z of one plan row: (B, *shape) float32."""
    return _batch(seed, samples, row, STEP, shape)


def noise_source(seed: int, samples: Sequence[int], shape: tuple[int, ...]) -> Callable[[int], Float32]:
    """The function of the row that `Plan.run` takes as `noise`."""
    return lambda row: row_noise(seed, samples, row, shape)


def normal(seed: int, sample: int, row: int, stream: int, count: int) -> Float32:
    """`count` float32 numbers of one stream. seed, sample, row: 0 to 2^64 - 1."""
    r = _philox(seed, sample, row, stream).random_raw((count + 1) // 2)
    radius = np.sqrt(-2 * np.log(((r >> np.uint64(32)) + np.uint64(1)) * _HALF))
    z = _unit_circle(r) * radius
    return z.view(np.float64).astype(np.float32)[:count]


def _unit_circle(r: NDArray[np.uint64]) -> NDArray[np.complex128]:
    """cos a + i sin a for the low halves of r: the product of three table entries, exact to 1e-15.

    Faster than sine and cosine, whose branches no processor predicts on random angles.
    """
    low, middle, high = _turns()
    point = low[r & _MASK]
    point *= middle[(r >> _BITS) & _MASK]
    point *= high[(r >> _TWO_BITS) & _TOP_MASK]
    return point


@cache
def _turns() -> tuple[NDArray[np.complex128], ...]:
    """The unit circle by the low, middle and high bits of an angle in 2^-32 turns."""
    sizes_and_steps = ((2**11, 1), (2**11, 2**11), (2**10, 2**22))
    return tuple(np.exp(1j * (np.arange(size) * step * _TURN)) for size, step in sizes_and_steps)


def _batch(seed: int, samples: Sequence[int], row: int, stream: int, shape: tuple[int, ...]) -> Float32:
    count = math.prod(shape)
    out = np.empty((len(samples), count), dtype=np.float32)
    for slot, sample in enumerate(samples):
        out[slot] = normal(seed, sample, row, stream, count)
    return out.reshape(len(samples), *shape)


def require_words(**numbers: int) -> None:
    """ValueError naming a number of a stream, such as `seed`, that is no whole number from 0 to 2^64 - 1."""
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < _WORD:
            raise ValueError(f"{name}: got {value!r}, expected a whole number from 0 to 2^64 - 1")


def _philox(seed: int, sample: int, row: int, stream: int) -> Any:
    require_words(seed=seed, sample=sample, row=row)
    key = np.array([seed, sample], dtype=np.uint64)
    return np.random.Philox(key=key, counter=np.array([0, 0, row, stream], dtype=np.uint64))
