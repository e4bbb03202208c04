"""Scenes as anti-aliased pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.shapes.scene import COLOURS, SHAPES, SIDE, Scenes

BACKGROUND = 0.07

Array = NDArray[Any]


def render(scenes: Scenes) -> NDArray[np.float32]:
    """Pictures (n, 3, 32, 32) in [-1, 1]."""
    palette = np.array(list(COLOURS.values()), np.float32)
    picture = np.full((len(scenes), 3, SIDE, SIDE), BACKGROUND, np.float32)
    for i in range(2):
        cover = _coverage(scenes, i)[:, None]
        if i == 1:
            cover[scenes.relation == 0] = 0
        picture += cover * (palette[scenes.colour[:, i]][:, :, None, None] - picture)
    return picture * 2 - 1


def _coverage(scenes: Scenes, i: int) -> Array:
    """(n, 32, 32): part of each pixel that lies inside object i, from the distance of its centre to the edge."""
    pixels = np.arange(SIDE, dtype=np.float32) + 0.5
    x = pixels - scenes.centre[:, i, 0, None].astype(np.float32)
    y = pixels - scenes.centre[:, i, 1, None].astype(np.float32)
    inside = np.empty((len(scenes), SIDE, SIDE), np.float32)
    for kind, name in enumerate(SHAPES):
        rows = scenes.shape[:, i] == kind
        radius = scenes.radius[rows, i, None, None].astype(np.float32)
        inside[rows] = DISTANCES[name](x[rows, None, :], y[rows, :, None], radius)
    return np.clip(0.5 - inside, 0, 1)


def _circle(x: Array, y: Array, radius: Array) -> Array:
    return np.sqrt(x * x + y * y) - radius


def _square(x: Array, y: Array, radius: Array) -> Array:
    return np.maximum(np.abs(x), np.abs(y)) - 0.88 * radius


def _triangle(x: Array, y: Array, radius: Array) -> Array:
    """Point up: the base 0.8 radii below the centre, the slopes 60 degrees steep."""
    slope = (np.sqrt(3) * np.abs(x) - y) / 2
    return np.maximum(y - 0.8 * radius, slope - 0.55 * radius).astype(np.float32)


def _cross(x: Array, y: Array, radius: Array) -> Array:
    long, short = np.abs(x), np.abs(y)
    arm = 0.34 * radius
    return np.minimum(
        np.maximum(long - radius, short - arm),
        np.maximum(long - arm, short - radius),
    )


DISTANCES = {"circle": _circle, "square": _square, "triangle": _triangle, "cross": _cross}
