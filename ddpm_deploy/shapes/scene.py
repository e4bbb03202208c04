"""Scenes of one or two coloured shapes, drawn at random but as a pure function of (seed, index)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

SIDE = 32
MARGIN = 1.0
TRAINING_SEED = 0  # of the scenes that a model is trained on
COLOURS = {
    "red": (0.90, 0.16, 0.16),
    "green": (0.16, 0.70, 0.28),
    "blue": (0.18, 0.38, 0.96),
    "yellow": (0.98, 0.86, 0.18),
    "purple": (0.72, 0.24, 0.82),
    "white": (0.96, 0.96, 0.96),
}
SHAPES = ("circle", "square", "triangle", "cross")
RELATIONS = ("alone", "left of", "right of", "above", "below")  # of the first object to the second
HELD_OUT = (("blue", "circle"), ("yellow", "square"), ("red", "triangle"), ("green", "cross"))
SPLITS = ("training", "held-out", "all")
LAYOUTS = ("alone", "side by side", "one above the other")
FACT_SIZES = (len(LAYOUTS), len(COLOURS), len(SHAPES), len(COLOURS), len(SHAPES))  # choices in each column of `facts`
UNASKED = -1
SINGLES = 0.2  # part of the scenes that hold one object

_COLOUR_NAMES = tuple(COLOURS)
_WEYL, _MIX = np.uint64(0x9E3779B97F4A7C15), (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))

Array = NDArray[Any]


@dataclass(frozen=True)
class Scenes:
    """What n pictures show.

    relation: (n,) index into RELATIONS. colour, shape: (n, 2) indices, of the first and the second object; where an
    object is alone, the second is meaningless. centre: (n, 2, 2) as (x, y), and radius: (n, 2), in pixels.
    """

    relation: Array
    colour: Array
    shape: Array
    centre: Array
    radius: Array

    def __len__(self) -> int:
        return len(self.relation)


def is_held_out(colour: Array, shape: Array) -> Array:
    """Whether a combination of colour and shape (indices) is kept out of training."""
    table = np.zeros((len(COLOURS), len(SHAPES)), bool)
    for name, kind in HELD_OUT:
        table[_COLOUR_NAMES.index(name), SHAPES.index(kind)] = True
    return table[colour, shape]


def uniforms(seed: int, indices: ArrayLike, count: int) -> Array:
    """Numbers in [0, 1): (n, count), row i a function of (seed, indices[i]) alone (SplitMix64, Steele et al. 2014)."""
    rows = np.asarray(indices, np.uint64)[:, None] * np.uint64(count) + np.arange(count, dtype=np.uint64)
    with np.errstate(over="ignore"):
        start = _mixed(np.uint64(seed) * np.ones(1, np.uint64) + _WEYL)
        return (_mixed(start + (rows + np.uint64(1)) * _WEYL) >> np.uint64(11)) * 2.0**-53


def _mixed(z: Array) -> Array:
    z = (z ^ (z >> np.uint64(30))) * _MIX[0]
    z = (z ^ (z >> np.uint64(27))) * _MIX[1]
    return z ^ (z >> np.uint64(31))


def draw_scenes(seed: int, indices: ArrayLike, split: str = "training") -> Scenes:
    """Scenes by index, without end.

    split: "training" has no held-out combination, "held-out" has at least one in each scene, "all" draws from all.
    """
    if split not in SPLITS:
        raise ValueError(f"split: got {split!r}, expected one of {', '.join(SPLITS)}")
    u = uniforms(seed, indices, 12)
    relation = np.where(u[:, 0] < SINGLES, 0, 1 + _whole(u[:, 1], 4))
    colour, shape = _objects(u[:, 2:4], split == "training")
    if split == "held-out":
        chosen = np.where(relation == 0, 0, _whole(u[:, 4], 2))
        rare = _whole(u[:, 5], len(HELD_OUT))
        rows = np.arange(len(u))
        colour[rows, chosen] = np.array([_COLOUR_NAMES.index(name) for name, _ in HELD_OUT])[rare]
        shape[rows, chosen] = np.array([SHAPES.index(kind) for _, kind in HELD_OUT])[rare]
    centre, radius = _placed(relation, u[:, 6:])
    return Scenes(relation, colour, shape, centre, radius)


def facts(scenes: Scenes) -> Array:
    """(n, 5): layout, then colour and shape of the left or upper object, then of the other; UNASKED for none."""
    layout = np.array([0, 1, 1, 2, 2])[scenes.relation]
    order = np.isin(scenes.relation, (2, 4)).astype(np.int64)[:, None] ^ np.array([[0, 1]])
    colour, shape = (np.take_along_axis(each, order, axis=1) for each in (scenes.colour, scenes.shape))
    table = np.stack([layout, colour[:, 0], shape[:, 0], colour[:, 1], shape[:, 1]], axis=1)
    table[layout == 0, 3:] = UNASKED
    return table


def _objects(u: Array, training: bool) -> tuple[Array, Array]:
    every = np.arange(len(COLOURS) * len(SHAPES))
    colours, shapes = every // len(SHAPES), every % len(SHAPES)
    if training:
        every = every[~is_held_out(colours, shapes)]
    chosen = every[_whole(u, len(every))]
    return chosen // len(SHAPES), chosen % len(SHAPES)


def _placed(relation: Array, u: Array) -> tuple[Array, Array]:
    """Centres and radii inside the picture; two objects never touch. u: (n, 6)."""
    alone = relation == 0
    radius = np.stack([_between(u[:, 0], 4.2, 6.0), _between(u[:, 1], 4.2, 6.0)], axis=1)
    radius[alone, 0] = _between(u[alone, 0], 5.5, 9.5)
    largest = np.where(alone, radius[:, 0], radius.max(axis=1))
    half_gap = np.where(alone, 0, (radius.sum(axis=1) + _between(u[:, 2], 1.5, 4.0)) / 2)
    half_slip = np.where(alone, 0, 1.5 * (2 * u[:, 3] - 1))
    along = SIDE / 2 + (2 * u[:, 4] - 1) * (SIDE / 2 - MARGIN - largest - half_gap)
    across = SIDE / 2 + (2 * u[:, 5] - 1) * (SIDE / 2 - MARGIN - largest - np.abs(half_slip))
    sign = np.where((relation == 1) | (relation == 3), -1, 1)[:, None] * np.array([1, -1])
    main = along[:, None] + sign * half_gap[:, None]
    other = across[:, None] + sign * half_slip[:, None]
    sideways = (relation <= 2)[:, None]
    return np.stack([np.where(sideways, main, other), np.where(sideways, other, main)], axis=2), radius


def _whole(u: Array, count: int) -> Array:
    return (u * count).astype(np.int64)


def _between(u: Array, low: float, high: float) -> Array:
    return low + (high - low) * u
