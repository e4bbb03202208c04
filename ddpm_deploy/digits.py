"""scikit-learn's handwritten digits, split once and for all into a part to train on and a part held out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.errors import DdpmDeployError

HIGHEST = 16
HELD_OUT = 360
SPLIT_SEED = 0


def digits_arrays(held_out: bool = False) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Pictures (N, 1, 8, 8) in [-1, 1] and labels (N,): 1437 to train on, or the 360 held out."""
    pixels, labels = digits_pixels(held_out)
    return (pixels / (HIGHEST / 2) - 1).astype(np.float32), labels


def digits_pixels(held_out: bool = False) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """As `digits_arrays`, with pixels from 0 to `HIGHEST`."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DdpmDeployError("data: 'digits' needs scikit-learn; pip install scikit-learn") from None
    digits = load_digits()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(digits.images))
    chosen = order[:HELD_OUT] if held_out else order[HELD_OUT:]
    return digits.images[chosen, None].astype(np.uint8), digits.target[chosen].astype(np.int64)
