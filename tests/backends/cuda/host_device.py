"""A host that stands in for a GPU: kernels.c built by the host's compiler, memory from numpy, everything at once.

What is enqueued happens at once, and capturing enqueues nothing: what a graph would hold is run on each replay.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest

from ddpm_deploy.backends.cuda.device import OutOfDeviceMemory
from ddpm_deploy.backends.cuda.driver import kernels, source


@cache
def library() -> Any:
    """kernels.c for this processor; products and sums are rounded one by one, as for the GPU."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler on this machine (cc, gcc or clang)")
    folder = Path(mkdtemp())
    (folder / "kernels.c").write_text(source())
    flags = ["-O2", "-std=c11", "-ffp-contract=off", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *flags, "-o", "kernels.so", "kernels.c", "-lm"], cwd=folder, check=True)
    loaded = ctypes.CDLL(str(folder / "kernels.so"))
    shutil.rmtree(folder)
    for name, types in kernels().items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = types, None
    return loaded


class HostMemory:
    """Bytes whose address is a multiple of 256; `freed` once they are given back."""

    def __init__(self, size_bytes: int) -> None:
        self._bytes = np.full(size_bytes + 256, 0xAB, np.uint8)  # not zeros: nothing may rely on them
        self.address = -(-self._bytes.ctypes.data // 256) * 256
        self.size_bytes = size_bytes
        self.freed = False

    def free(self) -> None:
        assert not self.freed
        self.freed = True


class HostDevice:
    """See the module. room_bytes: how much memory it has, None for enough. launched: names of all kernels so far."""

    kind, index, stream = "cpu", 0, 0

    def __init__(self, room_bytes: int | None = None) -> None:
        self._room = room_bytes
        self.memories: list[HostMemory] = []
        self.launched: list[str] = []
        self.captured = 0
        self.closed = False

    @property
    def used_bytes(self) -> int:
        return sum(memory.size_bytes for memory in self.memories if not memory.freed)

    @contextmanager
    def active(self) -> Iterator[None]:
        yield

    def allocate(self, size_bytes: int) -> HostMemory:
        if self._room is not None and self.used_bytes + size_bytes > self._room:
            raise OutOfDeviceMemory("host: no room")
        self.memories.append(HostMemory(size_bytes))
        return self.memories[-1]

    def write(self, address: int, array: np.ndarray) -> None:
        ctypes.memmove(address, np.ascontiguousarray(array).ctypes.data, array.nbytes)

    def read(self, address: int, array: np.ndarray) -> None:
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def launch(self, kernel: str, work: int, *arguments: Any) -> None:
        self.launched.append(kernel)
        getattr(library(), kernel)(*arguments)

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        self.captured += 1
        return enqueue

    def free_graphs(self) -> None:
        self.captured = 0

    def synchronize(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True
