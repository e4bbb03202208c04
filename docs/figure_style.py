"""How the pictures of the guide look: width, colours, file format."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

WIDTH = 8.3  # inches; at 160 dpi twice the width at which a README shows it, near enough
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"  # Okabe & Ito
INK, FAINT, PEACH = "#24292f", "#8c959f", "#f0b48f"
STYLE = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titlecolor": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e7eaee",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 2,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def show(axes: Axes, picture: NDArray[np.float64]) -> None:
    """One 8x8 digit, dark on light."""
    axes.imshow(picture.reshape(8, 8), cmap="gray_r", vmin=-1, vmax=1)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG of at most 256 colours, which is what keeps it small."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=160)
    Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    plt.close(figure)
