"""Samples as pictures: the only place that takes them for images."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

MIN_TILE = 64
GIF_FRAME_MS = 60
GIF_LAST_MS = 1500

NETWORK_RANGE = (-1.0, 1.0)

Array = NDArray[Any]
Bounds = tuple[float, float]


def is_picture(shape: Sequence[int]) -> bool:
    """Whether a sample shape is that of a grey, colour or RGBA picture, (C, H, W)."""
    return len(shape) == 3 and shape[0] in (1, 3, 4)


def to_uint8(samples: Array, bounds: Bounds = NETWORK_RANGE) -> NDArray[np.uint8]:
    """From network range to 0 ... 255, rounded and clipped; any shape. bounds: what is black and what is white."""
    if not np.isfinite(samples).all():
        raise ValueError("samples: expected finite numbers")
    low, high = bounds
    return np.clip(np.rint((samples - low) * (255 / (high - low))), 0, 255).astype(np.uint8)


def to_pil(samples: Array, bounds: Bounds = NETWORK_RANGE) -> list[Image]:
    """One PIL image for each sample of (n, C, H, W), in network range."""
    return [_from_pixels(pixels) for pixels in to_uint8(_checked(samples), bounds)]


def grid(
    samples: Array,
    *,
    bounds: Bounds = NETWORK_RANGE,
    columns: int | None = None,
    scale: int | None = None,
    gap: int | None = None,
) -> Image:
    """All samples in one picture.

    samples: (n, C, H, W) in network range. columns: None is near a square. scale: how many pixels a pixel becomes;
    None enlarges small pictures to about 64. gap: pixels between two in the enlarged picture; None is the width of one
    pixel of a sample, at least 2.
    """
    pixels = to_uint8(_checked(samples), bounds)
    n, channels, height, width = pixels.shape
    check_layout(columns, scale)
    columns = columns or math.ceil(math.sqrt(n))
    scale = scale or max(1, math.ceil(MIN_TILE / max(height, width)))
    gap = max(2, scale) if gap is None else gap
    pixels = pixels.repeat(scale, axis=2).repeat(scale, axis=3)
    rows = math.ceil(n / columns)
    tile_h, tile_w = height * scale + gap, width * scale + gap
    canvas = np.full((channels, rows * tile_h + gap, columns * tile_w + gap), 255, np.uint8)
    for i, tile in enumerate(pixels):
        top, left = gap + i // columns * tile_h, gap + i % columns * tile_w
        canvas[:, top : top + height * scale, left : left + width * scale] = tile
    return _from_pixels(canvas)


def check_layout(columns: int | None, scale: int | None) -> None:
    """Refuse what `grid` cannot lay out."""
    for name, value in (("columns", columns), ("scale", scale)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: got {value}, expected a whole number of at least 1")


def save_gif(frames: Sequence[Image], path: str | os.PathLike[str]) -> None:
    """An endless animation; the last frame is held for a while."""
    durations = [GIF_FRAME_MS] * (len(frames) - 1) + [GIF_LAST_MS]
    first, *rest = (frame.convert("RGB") for frame in frames)
    first.save(path, save_all=True, append_images=rest, duration=durations, loop=0)


def _from_pixels(pixels: NDArray[np.uint8]) -> Image:
    from PIL import Image

    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1))


def _checked(samples: Array) -> Array:
    if samples.ndim != 4 or not is_picture(samples.shape[1:]) or not len(samples):
        raise ValueError(f"samples: got shape {samples.shape}, expected pictures (n, C, H, W) with C of 1, 3 or 4")
    return samples
