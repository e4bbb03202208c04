"""Samples as a client wants them: pictures in base64, or numpy's own file."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np

from ddpm_deploy.bundle import Manifest
from ddpm_deploy.images import NETWORK_RANGE, to_pil
from ddpm_deploy.serve.handle import Array

JPEG_QUALITY = 95


def encoded(samples: Array, output_format: str, manifest: Manifest) -> list[str]:
    """Samples (n, C, H, W) in network range as files in base64. output_format: png or jpeg."""
    options: dict[str, Any] = {"quality": JPEG_QUALITY} if output_format == "jpeg" else {}
    return [_base64(image, output_format, options) for image in to_pil(samples, manifest.clip or NETWORK_RANGE)]


def npy(samples: Array) -> bytes:
    """The file that `numpy.load` reads."""
    file = io.BytesIO()
    np.save(file, samples, allow_pickle=False)
    return file.getvalue()


def size_of(samples: Array) -> str:
    """WIDTHxHEIGHT of samples (..., H, W)."""
    height, width = samples.shape[-2:]
    return f"{width}x{height}"


def _base64(image: Any, output_format: str, options: dict[str, Any]) -> str:
    file = io.BytesIO()
    image.save(file, output_format, **options)
    return base64.b64encode(file.getvalue()).decode()
