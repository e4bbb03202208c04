"""Data sets: scikit-learn's digits, any folder of images, CIFAR-10."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from ddpm_deploy.bundle import OutputAffine
from ddpm_deploy.digits import HIGHEST, digits_pixels
from ddpm_deploy.errors import TrainingError
from ddpm_deploy.train.cifar10 import read_cifar10
from ddpm_deploy.train.runs import Listing

PICTURE = OutputAffine(scale=(0.5,), offset=(0.5,), units="intensity, 0 to 1")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
HIGHEST_16_BIT = 65535
PICTURE_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Data:
    """A data set for training, with what the rest of the product must know about it.

    dataset: indexable, gives float32 (*S) in network range. clip: bounds of that range.
    """

    name: str
    dataset: Any
    sample_shape: tuple[int, ...]
    output: OutputAffine = PICTURE
    clip: tuple[float, float] | None = (-1.0, 1.0)


class Pictures(Dataset[Tensor]):
    """Pictures held in memory as bytes, (N, C, H, W) uint8; gives float32 in [-1, 1]."""

    def __init__(self, pixels: NDArray[np.uint8], highest: int = 255) -> None:
        self.pixels = torch.from_numpy(np.ascontiguousarray(pixels))
        self.highest = highest

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        return self.pixels[index].float() * (2 / self.highest) - 1

    def __getitems__(self, indices: list[int]) -> Tensor:
        return self.pixels[indices].float() * (2 / self.highest) - 1


class Folder(Dataset[Tensor]):
    """All images below a folder, read on demand: shorter side scaled to `size`, centre cut out, in [-1, 1]."""

    def __init__(self, path: Path, size: int, channels: int) -> None:
        if channels not in PICTURE_MODES:
            raise ValueError(f"channels: got {channels}, expected one of {', '.join(map(str, PICTURE_MODES))}")
        if size < 1:
            raise ValueError(f"size: got {size}, expected at least 1")
        if not path.is_dir():
            raise TrainingError(f"{path}: is no folder; give a folder of images")
        self.paths = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        if not self.paths:
            raise TrainingError(f"{path}: holds no images, expected files that end in {', '.join(IMAGE_SUFFIXES)}")
        self.size, self.mode = size, PICTURE_MODES[channels]
        names = "\0".join(file.relative_to(path).as_posix() for file in self.paths)
        digest = hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()
        self.listing = Listing(len(self.paths), digest)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        try:
            with Image.open(self.paths[index]) as image:
                picture = _square(_upright(image, self.mode), self.size)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise TrainingError(f"{self.paths[index]}: cannot be read as an image ({error}); remove it") from None
        pixels = np.array(picture, dtype=np.float32).reshape(self.size, self.size, -1)
        return torch.from_numpy(pixels.transpose(2, 0, 1) / 127.5 - 1)


def _upright(image: Image.Image, mode: str) -> Image.Image:
    """The image as it is meant to be seen: turned as its EXIF data says, 8 bits a channel, on white."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode[0] in "IF":
        image = _eight_bits(image)
    if image.has_transparency_data and mode != "RGBA":
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Pillow cuts off what is above 255 in grey pictures of 16 bits, which have mode I;16, or I from some formats."""
    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > HIGHEST_16_BIT:
        raise ValueError(f"mode {image.mode} with values outside 16 bits")
    return Image.fromarray((pixels / (HIGHEST_16_BIT / 255)).round().astype(np.uint8))


def _square(image: Image.Image, size: int) -> Image.Image:
    shorter = min(image.size)
    left, top = (image.width - shorter) // 2, (image.height - shorter) // 2
    box = (left, top, left + shorter, top + shorter)
    return image.resize((size, size), Image.Resampling.BOX if shorter >= 2 * size else Image.Resampling.BICUBIC, box)


def load_data(name: str, *, size: int | None = None, channels: int = 3) -> Data:
    """Open a data set by name: `digits`, `folder:PATH` or `cifar10:PATH` (folder or .tar.gz).

    size, channels: of the pictures of a folder; the others have their own.
    """
    kind, _, path = name.partition(":")
    if kind == "digits" and not path:
        return Data(name, Pictures(digits_pixels()[0], HIGHEST), (1, 8, 8))
    if kind == "folder" and path:
        if size is None:
            raise ValueError("size: missing, expected the side of the pictures in pixels; give --size")
        return Data(name, Folder(Path(path), size, channels), (channels, size, size))
    if kind == "cifar10" and path:
        return Data(name, Pictures(read_cifar10(Path(path))), (3, 32, 32))
    raise ValueError(f"data: got {name!r}, expected digits, folder:PATH or cifar10:PATH")
