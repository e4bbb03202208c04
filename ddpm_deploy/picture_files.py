"""Samples as `sample --out` writes them: a grid, an array, a folder of pictures, an animation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ddpm_deploy.bundle import MANIFEST_NAME
from ddpm_deploy.cli import require_writable
from ddpm_deploy.durable import replacing
from ddpm_deploy.images import grid, is_picture, save_gif, to_pil

if TYPE_CHECKING:
    from ddpm_deploy.plan import Frame

GIF_FRAMES = 48
FIRST_PICTURE = "000000.png"


def check_output(out: Path, animate: Path | None, shape: tuple[int, ...]) -> None:
    """Refuse what cannot be written before any time is spent on sampling."""
    if out.suffix != ".npy" and not is_picture(shape):
        raise ValueError(f"--out: got {out}, but samples of shape {shape} are no pictures; give a name ending in .npy")
    if animate and not is_picture(shape):
        raise ValueError(f"--animate: samples of shape {shape} are no pictures")
    if out.suffix not in (".png", ".npy", ""):
        raise ValueError(f"--out: got {out}, expected X.png, X.npy or a folder")
    if animate and animate.suffix != ".gif":
        raise ValueError(f"--animate: got {animate}, expected X.gif")
    if (out / MANIFEST_NAME).exists():
        raise ValueError(f"--out: got {out}, which is a bundle; give another folder for the pictures")
    for file in (out if out.suffix else out / FIRST_PICTURE, *([animate] if animate else [])):
        require_writable(file)


def write_samples(samples: Any, out: Path, look: dict[str, Any], start: int) -> list[Path]:
    """What was written. look: the arguments of `images.grid`. start: the number of the first picture in a folder.

    Where a file does not fit onto the disk, what was there before stays; OSError names the file.
    """
    if out.suffix == ".npy":
        with _whole(out) as stream:
            np.save(stream, samples)
        return [out]
    if out.suffix == ".png":
        with _whole(out) as stream:
            grid(samples, **look).save(stream, "PNG")
        return [out]
    paths = [out / f"{start + i:06d}.png" for i in range(len(samples))]
    for path, picture in zip(paths, to_pil(samples, look["bounds"]), strict=True):
        with _named(path):
            picture.save(path)
    return paths


def write_animation(frames: Iterable[Frame], nfe: int, path: Path, look: dict[str, Any]) -> Any:
    """Consume the frames of a run, write some of them as an animation, and give back the samples."""
    shown = {round(i) for i in np.linspace(0, nfe - 1, min(nfe, GIF_FRAMES))}
    pictures = []
    for frame in frames:
        if frame.step in shown:
            pictures.append(grid(frame.x, **look))
    with _named(path):
        save_gif(pictures, path)
    return frame.x


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """A stream for all of a file, which takes its place when nothing has failed."""
    with _named(path), replacing(path) as stream:
        yield stream


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
