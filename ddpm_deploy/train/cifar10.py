"""The public python-version files of CIFAR-10, read without trusting them: they are pickles."""

from __future__ import annotations

import io
import math
import pickle
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.errors import TrainingError

TRAIN_NAMES = tuple(f"data_batch_{i}" for i in range(1, 6))
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PIXELS = 3 * 32 * 32
MAX_BATCH_BYTES = 64 * 2**20  # the real files have 31 MB
ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
UINT8_CODES = ("u1", b"u1", "uint8", b"uint8")
UINT8_STATES = tuple((order, None, None, None, -1, -1, 0) for order in ("|", b"|"))  # after the format's version


Pair = tuple[NDArray[np.uint8], NDArray[np.int64]]


def read_cifar10(path: Path) -> Pair:
    """The training pictures, (N, 3, 32, 32), and their labels (N,), of `CLASSES`.

    path: the folder `cifar-10-batches-py`, one that holds it, or the downloaded `.tar.gz`, with all five batches.
    """
    batches: dict[str, Pair] = {}
    for batch, where, data in _files(path):
        if batch in batches:
            raise TrainingError(f"{path}: holds {batch} twice, expected each batch once; download it again")
        batches[batch] = _read(data, where)
    missing = [name for name in TRAIN_NAMES if name not in batches]
    if missing:
        raise TrainingError(f"{path}: holds no {', '.join(missing)}; give all of CIFAR-10's training files")
    pixels, labels = zip(*(batches[name] for name in TRAIN_NAMES), strict=True)
    return np.concatenate(pixels), np.concatenate(labels)


def _files(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """Name of the batch, where it lies, and its bytes."""
    if path.is_dir():
        inner = path / "cifar-10-batches-py"
        folder = inner if inner.is_dir() else path
        for name in TRAIN_NAMES:
            if (folder / name).is_file():
                with open(folder / name, "rb") as stream:
                    yield name, str(folder / name), _limited(stream, str(folder / name))
        return
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = Path(member.name).name
                if member.isfile() and name in TRAIN_NAMES:
                    yield name, f"{path}: {member.name}", _limited(archive.extractfile(member), member.name)
    except (tarfile.TarError, EOFError) as error:
        raise TrainingError(f"{path}: cannot be read as a tar archive ({error}); download it again") from None


def _limited(stream: Any, name: str) -> bytes:
    data: bytes = stream.read(MAX_BATCH_BYTES + 1)
    if len(data) > MAX_BATCH_BYTES:
        raise TrainingError(f"{name}: is larger than {MAX_BATCH_BYTES} bytes, so it is no file of CIFAR-10")
    return data


def _read(data: bytes, name: str) -> Pair:
    try:
        batch = _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
    except TrainingError as error:
        raise TrainingError(f"{name}: {error}") from None
    except Exception as error:  # a broken pickle may raise anything
        raise TrainingError(f"{name}: is no file of CIFAR-10 ({error}); download it again") from None
    array, labels = (_member(batch, key) for key in ("data", "labels"))
    if not isinstance(array, _Array) or array.shape[1:] != (PIXELS,):
        raise TrainingError(f"{name}: expected 'data', (N, {PIXELS}) of uint8; download it again")
    whole = isinstance(labels, list) and all(type(label) is int and 0 <= label < len(CLASSES) for label in labels)
    if not whole or len(labels) != array.shape[0]:
        raise TrainingError(f"{name}: expected 'labels', a list of {array.shape[0]} of 0 to 9; download it again")
    order: Literal["C", "F"] = "F" if array.fortran else "C"
    pixels = np.frombuffer(array.raw, np.uint8).reshape(array.shape, order=order)
    return np.ascontiguousarray(pixels).reshape(-1, 3, 32, 32), np.array(labels, np.int64)


def _member(batch: Any, key: str) -> Any:
    """A member of the batch, whose keys are texts or bytes."""
    return batch.get(key.encode(), batch.get(key)) if isinstance(batch, dict) else None


class _ArraysOnly(pickle.Unpickler):
    """Builds dicts, lists, numbers, bytes and stand-ins for uint8 arrays, and refuses every other name in the pickle.

    No object of numpy is handed to the pickle: its BUILD opcode could give it a state that reads foreign memory.
    """

    def find_class(self, module: str, name: str) -> Any:
        if module in ARRAY_MODULES and name == "_reconstruct":
            return _Name(_Array)
        if (module, name) == ("numpy", "ndarray"):
            return _Name(_refuse_call)
        if (module, name) == ("numpy", "dtype"):
            return _Name(_Dtype)
        if (module, name) == ("_codecs", "encode"):
            return _Name(_latin1)
        raise TrainingError(f"the pickle asks for {module}.{name}, which CIFAR-10's files do not need; do not trust it")


class _Name:
    """What a name in the pickle stands for: to be called, never to be altered."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a name in the pickle is given a state")


class _Dtype:
    """Stands for numpy's uint8, and for no other type."""

    __slots__ = ()

    def __init__(self, code: Any, align: Any = False, copy: Any = False) -> None:
        if code not in UINT8_CODES:
            raise ValueError(f"dtype: got {code!r}, expected 'u1'")

    def __setstate__(self, state: Any) -> None:
        if type(state) is not tuple or state[1:] not in UINT8_STATES:
            raise ValueError("dtype: got a state that is not uint8's")


class _Array:
    """Stands for an array of uint8: the shape, order and bytes that its state names."""

    __slots__ = ("fortran", "raw", "shape")

    def __init__(self, kind: Any, shape: Any, typecode: Any) -> None:
        self.shape: tuple[int, ...] = (0,)
        self.fortran, self.raw = False, b""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype) or type(raw) is not bytes or type(shape) is not tuple:
            raise ValueError("array: got a state that is not a uint8 array's")
        if any(type(side) is not int or side < 1 for side in shape) or math.prod(shape) != len(raw):
            raise ValueError(f"array: got {len(raw)} bytes for another shape")
        self.shape, self.fortran, self.raw = shape, bool(fortran), raw


def _refuse_call(*args: Any) -> None:
    raise ValueError("the pickle calls numpy.ndarray, which it may only name")


def _latin1(text: Any, encoding: Any = "latin1") -> bytes:
    """How protocol 2 of Python 3 stores bytes."""
    if isinstance(text, bytes):
        return text
    return str(text).encode("latin1")
