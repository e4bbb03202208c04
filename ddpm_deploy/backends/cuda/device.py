"""Where the buffers of a resident loop live: what a loop asks of a device, and the memory of one batch size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ddpm_deploy.errors import BackendError

ALIGNMENT = 256  # bytes, as TensorRT wants its tensors

Array = NDArray[Any]
Layout = Mapping[str, tuple[DTypeLike, tuple[int, ...]]]


class OutOfDeviceMemory(BackendError):
    """The device has too little memory for what was asked; a smaller batch may fit."""


class Memory(Protocol):
    """A piece of the device's memory."""

    address: int

    def free(self) -> None:
        """Give it back; nothing enqueued may use it any more."""


class Device(Protocol):
    """A device with one stream, on which everything happens in the order in which it is asked for.

    kind: "cuda", or "cpu" for a host that stands in for one. index: its number.
    """

    kind: str
    index: int

    @property
    def stream(self) -> int:
        """The handle of the stream."""

    def active(self) -> AbstractContextManager[None]:
        """Let the calling thread use the device."""

    def allocate(self, size_bytes: int) -> Memory:
        """Memory of its own; OutOfDeviceMemory where there is too little."""

    def write(self, address: int, array: Array) -> None:
        """Copy an array there; it may change once this returns."""

    def read(self, address: int, array: Array) -> None:
        """Wait for all that was enqueued and copy into an array."""

    def launch(self, kernel: str, work: int, *arguments: Any) -> None:
        """Enqueue a function of kernels.c over `work` items. arguments: addresses (None is null) and whole numbers."""

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """What `enqueue` enqueues, as a graph that each call enqueues again."""

    def free_graphs(self) -> None:
        """Free everything that was captured, which nothing calls any more."""

    def synchronize(self) -> None:
        """Wait for all that was enqueued."""

    def close(self) -> None:
        """Free the stream and what else the device holds."""


@dataclass(frozen=True)
class Buffer:
    """One tensor in the memory of a batch size."""

    address: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Without the padding after it."""
        return self.dtype.itemsize * math.prod(self.shape)


class Buffers:
    """Named tensors in one piece of memory, each at an aligned address that never changes."""

    def __init__(self, device: Device, layout: Layout) -> None:
        self.device = device
        self._tensors: dict[str, Buffer] = {}
        offset = 0
        for name, (dtype, shape) in layout.items():
            self._tensors[name] = Buffer(offset, np.dtype(dtype), shape)
            offset += -(-self._tensors[name].size_bytes // ALIGNMENT) * ALIGNMENT
        self._memory = device.allocate(offset)
        self._tensors = {
            name: Buffer(self._memory.address + tensor.address, tensor.dtype, tensor.shape)
            for name, tensor in self._tensors.items()
        }

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> Buffer:
        return self._tensors[name]

    def address(self, name: str) -> int | None:
        """Where a tensor begins; None for one that this layout does without."""
        return self._tensors[name].address if name in self._tensors else None

    def write(self, name: str, array: Array) -> None:
        """Fill a tensor from its beginning; the array may be shorter."""
        tensor = self._tensors[name]
        array = np.ascontiguousarray(array, tensor.dtype)
        assert array.nbytes <= tensor.size_bytes, name
        self.device.write(tensor.address, array)

    def read(self, name: str) -> Array:
        """A copy of a tensor, once everything before has happened."""
        tensor = self._tensors[name]
        array = np.empty(tensor.shape, tensor.dtype)
        self.device.read(tensor.address, array)
        return array

    def free(self) -> None:
        """Give the memory back."""
        self._memory.free()
