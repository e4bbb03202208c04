"""A stand-in for `cuda.bindings.driver`: memory of the host, kernels.c built by the host's compiler.

Enqueued work is done at once, but while a stream is captured it is kept for the graph, as a GPU does. `calls` are the
names of all functions that were called; `fails` are statuses to return instead, by function.
"""

from __future__ import annotations

import ctypes
import enum
import types
from collections.abc import Callable
from typing import Any

import numpy as np
from host_device import library

from ddpm_deploy.backends.cuda.driver import kernels


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_INVALID_DEVICE = 101
    CUDA_ERROR_INVALID_IMAGE = 200


OK = CUresult.CUDA_SUCCESS


class FakeDriver:
    CUresult = CUresult
    CUstream_flags = enum.IntEnum("CUstream_flags", {"CU_STREAM_NON_BLOCKING": 1})
    CUdevice_attribute = enum.Enum(
        "CUdevice_attribute",
        "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR",
    )
    CUstreamCaptureMode = enum.Enum("CUstreamCaptureMode", "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL")

    def __init__(self, devices: int = 1) -> None:
        self.devices = devices
        self.calls: list[str] = []
        self.fails: dict[str, CUresult] = {}
        self.memory: dict[int, np.ndarray] = {}
        self.current: list[str] = []  # contexts of the thread
        self.capturing: list[Callable[[], None]] | None = None

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not name.startswith("cu"):
            return found
        if name not in ("calls", "current"):
            self.calls.append(name)
        if name in self.fails:
            return lambda *arguments: (self.fails[name], None)
        return found

    def cuInit(self, flags: int) -> Any:
        return (OK,)

    def cuDeviceGet(self, index: int) -> Any:
        return (OK, index) if index < self.devices else (CUresult.CUDA_ERROR_INVALID_DEVICE, None)

    def cuDeviceGetAttribute(self, attribute: Any, device: int) -> Any:
        return OK, 9 if attribute.name.endswith("MAJOR") else 0

    def cuDevicePrimaryCtxRetain(self, device: int) -> Any:
        return OK, "context"

    def cuDevicePrimaryCtxRelease(self, device: int) -> Any:
        return (OK,)

    def cuCtxPushCurrent(self, context: str) -> Any:
        self.current.append(context)
        return (OK,)

    def cuCtxPopCurrent(self) -> Any:
        return OK, self.current.pop()

    def cuStreamCreate(self, flags: int) -> Any:
        assert self.current
        return OK, 77

    def cuStreamSynchronize(self, stream: int) -> Any:
        assert self.current
        assert self.capturing is None, "a captured stream cannot be waited for"
        return (OK,)

    def cuStreamDestroy(self, stream: int) -> Any:
        return (OK,)

    def cuModuleLoadData(self, code: bytes) -> Any:
        return OK, code

    def cuModuleGetFunction(self, module: bytes, name: bytes) -> Any:
        return OK, name.decode()

    def cuModuleUnload(self, module: bytes) -> Any:
        return (OK,)

    def cuMemAlloc(self, size: int) -> Any:
        assert self.current
        block = np.full(size + 256, 0xAB, np.uint8)
        address = -(-block.ctypes.data // 256) * 256
        self.memory[address] = block
        return OK, address

    def cuMemFree(self, address: int) -> Any:
        del self.memory[address]
        return (OK,)

    def cuMemcpyHtoDAsync(self, to: int, source: int, size: int, stream: int) -> Any:
        assert self.capturing is None
        ctypes.memmove(to, source, size)
        return (OK,)

    def cuMemcpyDtoHAsync(self, to: int, source: int, size: int, stream: int) -> Any:
        return self.cuMemcpyHtoDAsync(to, source, size, stream)

    def cuLaunchKernel(self, function: str, *rest: Any) -> Any:
        assert self.current
        *grid, shared, stream, (values, declared), extra = rest
        assert declared == kernels()[function]
        assert len(values) == len(declared)
        assert grid[0] * grid[3] > 0
        assert (grid[1:3], grid[4:], shared, stream, extra) == ([1, 1], [1, 1], 0, 77, 0)
        self._enqueue(lambda: getattr(library(), function)(*values))
        return (OK,)

    def cuStreamBeginCapture(self, stream: int, mode: Any) -> Any:
        assert self.capturing is None
        self.capturing = []
        return (OK,)

    def cuStreamEndCapture(self, stream: int) -> Any:
        graph, self.capturing = self.capturing, None
        return OK, graph

    def cuGraphInstantiate(self, graph: Any, flags: int) -> Any:
        return OK, list(graph)

    def cuGraphDestroy(self, graph: Any) -> Any:
        graph.clear()
        return (OK,)

    def cuGraphExecDestroy(self, graph: Any) -> Any:
        return (OK,)

    def cuGraphLaunch(self, graph: Any, stream: int) -> Any:
        assert self.current
        for work in graph:
            work()
        return (OK,)

    def _enqueue(self, work: Callable[[], None]) -> None:
        if self.capturing is None:
            work()
        else:
            self.capturing.append(work)


def bindings(driver: FakeDriver, nvrtc: Any = None) -> dict[str, types.ModuleType]:
    """What `sys.modules` holds when the bindings are installed."""
    package, module = types.ModuleType("cuda"), types.ModuleType("cuda.bindings")
    module.driver, module.nvrtc = driver, nvrtc  # type: ignore[attr-defined]
    package.bindings = module  # type: ignore[attr-defined]
    return {"cuda": package, "cuda.bindings": module}
