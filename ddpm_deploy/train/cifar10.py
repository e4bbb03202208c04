"""The public python-version files of CIFAR-10, read without trusting them: they are pickles."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.errors import TrainingError

TRAIN_NAMES = tuple(f"data_batch_{i}" for i in range(1, 6))
PIXELS = 3 * 32 * 32
MAX_BATCH_BYTES = 64 * 2**20  # the real files have 31 MB
ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")


def read_cifar10(path: Path) -> NDArray[np.uint8]:
    """The training pictures, (N, 3, 32, 32).

    path: the folder `cifar-10-batches-py`, one that holds it, or the downloaded `.tar.gz`.
    """
    batches = [_pixels(data, name) for name, data in _files(path)]
    if not batches:
        raise TrainingError(f"{path}: holds none of {TRAIN_NAMES[0]} ... {TRAIN_NAMES[-1]}; give CIFAR-10's files")
    return np.concatenate(batches)


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        inner = path / "cifar-10-batches-py"
        folder = inner if inner.is_dir() else path
        for name in TRAIN_NAMES:
            if (folder / name).is_file():
                with open(folder / name, "rb") as stream:
                    yield str(folder / name), _limited(stream, str(folder / name))
        return
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and Path(member.name).name in TRAIN_NAMES:
                    yield f"{path}: {member.name}", _limited(archive.extractfile(member), member.name)
    except (tarfile.TarError, EOFError) as error:
        raise TrainingError(f"{path}: cannot be read as a tar archive ({error}); download it again") from None


def _limited(stream: Any, name: str) -> bytes:
    data: bytes = stream.read(MAX_BATCH_BYTES + 1)
    if len(data) > MAX_BATCH_BYTES:
        raise TrainingError(f"{name}: is larger than {MAX_BATCH_BYTES} bytes, so it is no file of CIFAR-10")
    return data


def _pixels(data: bytes, name: str) -> NDArray[np.uint8]:
    try:
        batch = _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
    except TrainingError as error:
        raise TrainingError(f"{name}: {error}") from None
    except Exception as error:  # a broken pickle may raise anything
        raise TrainingError(f"{name}: is no file of CIFAR-10 ({error}); download it again") from None
    pixels = batch.get(b"data") if isinstance(batch, dict) else None
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (PIXELS,):
        raise TrainingError(f"{name}: expected 'data', (N, {PIXELS}) of uint8; download it again")
    return pixels.reshape(-1, 3, 32, 32)


class _ArraysOnly(pickle.Unpickler):
    """Builds dicts, lists, numbers, bytes and numpy arrays, and refuses every other name in the pickle."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ARRAY_MODULES and name == "_reconstruct":
            return _empty_array
        if (module, name) == ("numpy", "ndarray"):
            return _Ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        raise TrainingError(f"the pickle asks for {module}.{name}, which CIFAR-10's files do not need; do not trust it")


class _Ndarray:
    """Stands where the pickle names numpy.ndarray as an argument, so that it cannot call it."""


def _empty_array(kind: Any, shape: Any, typecode: Any) -> NDArray[Any]:
    """What numpy's own `_reconstruct` gives for a plain array; `__setstate__` then fills it."""
    return np.ndarray.__new__(np.ndarray, (0,), "b")


def _latin1(text: Any, encoding: Any = "latin1") -> bytes:
    """How protocol 2 of Python 3 stores bytes."""
    if isinstance(text, bytes):
        return text
    return str(text).encode("latin1")
