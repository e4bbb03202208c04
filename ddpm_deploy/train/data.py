"""Data sets: scikit-learn's digits, any folder of images, CIFAR-10; each with labels where they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from ddpm_deploy.bundle import Condition, OutputAffine
from ddpm_deploy.digits import HIGHEST, digits_pixels
from ddpm_deploy.errors import TrainingError
from ddpm_deploy.train.cifar10 import CLASSES, read_cifar10
from ddpm_deploy.train.runs import Listing

PICTURE = OutputAffine(scale=(0.5,), offset=(0.5,), units="intensity, 0 to 1")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
HIGHEST_16_BIT = 65535
PICTURE_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
LABELS = "labels"
DIGITS = tuple("0123456789")
Sample = Tensor | tuple[Tensor, dict[str, Tensor]]


@dataclass(frozen=True)
class Data:
    """A data set for training, with what the rest of the product must know about it.

    dataset: indexable, gives float32 x (*S) in network range, or (x, dict of condition tensors). clip: bounds of that
    range. conditions: what those tensors are; may be left out where they have neither classes nor a null.
    levels: how many values, evenly spaced over the clip range, a number of a sample has, or None for any number.
    """

    name: str
    dataset: Any
    sample_shape: tuple[int, ...]
    output: OutputAffine = PICTURE
    clip: tuple[float, float] | None = (-1.0, 1.0)
    conditions: tuple[Condition, ...] = ()
    levels: int | None = None


def label_condition(classes: Sequence[str]) -> Condition:
    """Labels of these classes; the number after the last one stands for none."""
    return Condition(LABELS, (), "int64", tuple(classes), null=len(classes))


class Pictures(Dataset[Sample]):
    """Pictures held in memory as bytes, (N, C, H, W) uint8; gives float32 in [-1, 1], with labels (N,) if given."""

    def __init__(self, pixels: NDArray[np.uint8], highest: int = 255, labels: NDArray[np.int64] | None = None) -> None:
        self.pixels = torch.from_numpy(np.ascontiguousarray(pixels))
        self.labels = None if labels is None else torch.from_numpy(labels)
        self.highest = highest

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int | list[int]) -> Sample:
        x = self.pixels[index].float() * (2 / self.highest) - 1
        return x if self.labels is None else (x, {LABELS: self.labels[index]})

    def __getitems__(self, indices: list[int]) -> Sample:
        return self[indices]


class Folder(Dataset[Sample]):
    """All images below a folder, read on demand: shorter side scaled to `size`, centre cut out, in [-1, 1].

    labels: give each the index in `classes` of the subfolder that it is in or below, which every image then needs.
    """

    def __init__(self, path: Path, size: int, channels: int, labels: bool = False) -> None:
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
        parts = [file.relative_to(path).parts for file in self.paths]
        self.classes = _class_names(path, parts) if labels else ()
        numbers = {name: i for i, name in enumerate(self.classes)}
        self.labels = [numbers[first] for first, *_ in parts] if labels else None
        names = "\0".join(file.relative_to(path).as_posix() for file in self.paths)
        digest = hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()
        self.listing = Listing(len(self.paths), digest)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        x = self._picture(index)
        return x if self.labels is None else (x, {LABELS: torch.tensor(self.labels[index])})

    def _picture(self, index: int) -> Tensor:
        try:
            with Image.open(self.paths[index]) as image:
                picture = _square(_upright(image, self.mode), self.size)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise TrainingError(f"{self.paths[index]}: cannot be read as an image ({error}); remove it") from None
        pixels = np.array(picture, dtype=np.float32).reshape(self.size, self.size, -1)
        return torch.from_numpy(pixels.transpose(2, 0, 1) / 127.5 - 1)


def _class_names(path: Path, parts: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    for names in parts:
        if len(names) == 1:
            raise TrainingError(f"{path / names[0]}: has no label, expected it in a subfolder named after its class")
    return tuple(sorted({names[0] for names in parts}))


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


def load_data(name: str, *, size: int | None = None, channels: int = 3, labels: bool = False) -> Data:
    """Open a data set by name: `digits`, `folder:PATH` or `cifar10:PATH` (folder or .tar.gz).

    size, channels: of the pictures of a folder; the others have their own. labels: give each picture its class, which
    in a folder is the subfolder's name.
    """
    kind, _, path = name.partition(":")
    if kind == "digits" and not path:
        pixels, digits = digits_pixels()
        return _pictures(name, Pictures(pixels, HIGHEST, digits if labels else None), (1, 8, 8), DIGITS, HIGHEST + 1)
    if kind == "folder" and path:
        if size is None:
            raise ValueError("size: missing, expected the side of the pictures in pixels; give --size")
        folder = Folder(Path(path), size, channels, labels)
        return _pictures(name, folder, (channels, size, size), folder.classes)
    if kind == "cifar10" and path:
        pixels, kinds = read_cifar10(Path(path))
        return _pictures(name, Pictures(pixels, labels=kinds if labels else None), (3, 32, 32), CLASSES)
    raise ValueError(f"data: got {name!r}, expected digits, folder:PATH or cifar10:PATH")


def _pictures(
    name: str, dataset: Pictures | Folder, shape: tuple[int, ...], classes: Sequence[str], levels: int = 256
) -> Data:
    conditions = () if dataset.labels is None else (label_condition(classes),)
    return Data(name, dataset, shape, conditions=conditions, levels=levels)
