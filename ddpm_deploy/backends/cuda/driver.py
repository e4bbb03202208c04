"""A CUDA device through NVIDIA's own bindings of its driver: memory, a stream, graphs, and kernels.c compiled for it.

Needs neither torch nor the CUDA toolkit: `pip install 'ddpm-deploy[cuda]'` brings the bindings and the compiler.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import resources
from typing import Any

from numpy.typing import NDArray

from ddpm_deploy.backends.base import one_line
from ddpm_deploy.backends.cuda.device import OutOfDeviceMemory
from ddpm_deploy.errors import BackendError, BackendUnavailable

REMEDY = "run pip install 'ddpm-deploy[cuda]'"
THREADS = 256  # of a block
MAX_BLOCKS = 65_535
OPTIONS = (b"--fmad=false", b"--std=c++17")  # products and sums are rounded one by one, as numpy rounds them


class CudaDevice:
    """One GPU, in the context that torch and ONNX Runtime use as well."""

    kind = "cuda"

    def __init__(self, index: int = 0) -> None:
        self.index = index
        self._cuda = _driver()
        try:
            self._handle = self._check("cuDeviceGet", index)
        except BackendError as error:
            raise BackendUnavailable(f"cuda:{index}: {error}; use a device that nvidia-smi lists") from error
        code = compiled(self.compute_capability)
        self._context = self._check("cuDevicePrimaryCtxRetain", self._handle)
        try:
            with self.active():
                self._module = self._loaded(code)
                self._functions = {
                    name: self._check("cuModuleGetFunction", self._module, name.encode()) for name in kernels()
                }
                self._stream = self._check("cuStreamCreate", int(self._cuda.CUstream_flags.CU_STREAM_NON_BLOCKING))
        except BaseException:
            self._check("cuDevicePrimaryCtxRelease", self._handle)
            raise
        self._graphs: list[Any] = []
        self._closed = False

    @property
    def stream(self) -> int:
        """The handle of the stream."""
        return int(self._stream)

    @property
    def compute_capability(self) -> tuple[int, int]:
        """Such as (9, 0)."""
        names = self._cuda.CUdevice_attribute
        major, minor = (
            self._check("cuDeviceGetAttribute", getattr(names, f"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{part}"),
                        self._handle)
            for part in ("MAJOR", "MINOR")
        )  # fmt: skip
        return major, minor

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let the calling thread use the device."""
        self._check("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self._check("cuCtxPopCurrent")

    def allocate(self, size_bytes: int) -> CudaMemory:
        """Memory of its own."""
        with self.active():
            return CudaMemory(self, int(self._check("cuMemAlloc", max(1, size_bytes))))

    def write(self, address: int, array: NDArray[Any]) -> None:
        """Copy an array there in the stream's order; memory that is not pinned is staged before this returns."""
        with self.active():
            self._check("cuMemcpyHtoDAsync", address, array.ctypes.data, array.nbytes, self._stream)

    def read(self, address: int, array: NDArray[Any]) -> None:
        """Wait for the stream and copy."""
        with self.active():
            self._check("cuMemcpyDtoHAsync", array.ctypes.data, address, array.nbytes, self._stream)
            self._check("cuStreamSynchronize", self._stream)

    def launch(self, kernel: str, work: int, *arguments: Any) -> None:
        """Enqueue a function of kernels.c; the calling thread must be inside of `active`."""
        types = kernels()[kernel]
        values = tuple(0 if value is None else value for value in arguments)
        blocks = min(MAX_BLOCKS, -(-work // THREADS))
        self._check("cuLaunchKernel", self._functions[kernel], blocks, 1, 1, THREADS, 1, 1, 0, self._stream,
                    (values, types), 0)  # fmt: skip

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """Capture what is enqueued on the stream; other threads and streams are left alone."""
        with self.active():
            self._check("cuStreamBeginCapture", self._stream,
                        self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)  # fmt: skip
            try:
                enqueue()
            except BaseException:
                self._cuda.cuStreamEndCapture(self._stream)  # what it says of the failed capture says less
                raise
            graph = self._check("cuStreamEndCapture", self._stream)
            try:
                executable = self._check("cuGraphInstantiate", graph, 0)
            finally:
                self._check("cuGraphDestroy", graph)
        self._graphs.append(executable)
        return lambda: self._launch_graph(executable)

    def free_graphs(self) -> None:
        """Destroy all graphs."""
        with self.active():
            while self._graphs:
                self._check("cuGraphExecDestroy", self._graphs.pop())

    def synchronize(self) -> None:
        """Wait for the stream."""
        with self.active():
            self._check("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Destroy graphs, kernels and the stream, and let go of the context."""
        if self._closed:
            return
        self._closed = True
        with self.active():
            self._check("cuStreamSynchronize", self._stream)
            self.free_graphs()
            self._check("cuModuleUnload", self._module)
            self._check("cuStreamDestroy", self._stream)
        self._check("cuDevicePrimaryCtxRelease", self._handle)

    def _loaded(self, code: bytes) -> Any:
        """The kernels; BackendUnavailable where the driver does not take them."""
        try:
            return self._check("cuModuleLoadData", code)
        except OutOfDeviceMemory:
            raise
        except BackendError as error:
            raise BackendUnavailable(
                f"{error}: the driver does not take what NVIDIA's compiler makes; update the driver, or install the "
                "nvidia-cuda-nvrtc of its CUDA version"
            ) from error

    def _launch_graph(self, executable: Any) -> None:
        self._check("cuGraphLaunch", executable, self._stream)

    def _check(self, function: str, *arguments: Any) -> Any:
        """Call a function of the driver; its only result, or None."""
        return checked(self._cuda, function, *arguments)


class CudaMemory:
    """A piece of a device's memory."""

    def __init__(self, device: CudaDevice, address: int) -> None:
        self.address = address
        self._device: CudaDevice | None = device

    def free(self) -> None:
        """Give it back, once."""
        device, self._device = self._device, None
        if device is not None:
            with device.active():
                device._check("cuMemFree", self.address)


def checked(cuda: Any, function: str, *arguments: Any) -> Any:
    """Call a function of the bindings, which return the status first; raise for any status but success."""
    status, *results = getattr(cuda, function)(*arguments)
    codes = cuda.CUresult
    if status == codes.CUDA_ERROR_OUT_OF_MEMORY:
        raise OutOfDeviceMemory(f"cuda: {function}: the device has too little memory left")
    if status != codes.CUDA_SUCCESS:
        raise BackendError(f"cuda: {function} failed: {getattr(status, 'name', status)}")
    return results[0] if results else None


@cache
def source() -> str:
    """kernels.c."""
    return resources.files(__package__).joinpath("kernels.c").read_text("utf-8")


@cache
def kernels() -> dict[str, tuple[Any, ...]]:
    """The ctypes of each kernel's arguments by its name, as the source declares them."""
    import re

    found = re.findall(r"^KERNEL (ddpm_\w+)\((.*?)\)", source(), re.MULTILINE | re.DOTALL)
    return {name: tuple(map(_ctype, arguments.split(","))) for name, arguments in found}


def _ctype(declared: str) -> Any:
    if "*" in declared:
        return ctypes.c_void_p
    return {"u64": ctypes.c_uint64, "i64": ctypes.c_int64}[declared.split()[0]]


@cache
def compiled(compute_capability: tuple[int, int]) -> bytes:
    """kernels.c as machine code for GPUs of a compute capability; needs no GPU.

    BackendUnavailable where NVIDIA's runtime compiler is missing.
    """
    nvrtc = _nvrtc()
    major, minor = compute_capability
    options = [*OPTIONS, f"--gpu-architecture=sm_{major}{minor}".encode()]
    program = _compiler(nvrtc, "nvrtcCreateProgram", source().encode(), b"kernels.c", 0, [], [])
    try:
        _compiler(nvrtc, "nvrtcCompileProgram", program, len(options), options)
    except BackendError as error:
        log = b" " * _compiler(nvrtc, "nvrtcGetProgramLogSize", program)
        _compiler(nvrtc, "nvrtcGetProgramLog", program, log)
        raise BackendError(f"{error}: {one_line(log.decode(errors='replace'))}") from error
    code = b" " * _compiler(nvrtc, "nvrtcGetCUBINSize", program)
    _compiler(nvrtc, "nvrtcGetCUBIN", program, code)
    nvrtc.nvrtcDestroyProgram(program)
    return code


def _compiler(nvrtc: Any, function: str, *arguments: Any) -> Any:
    status, *results = getattr(nvrtc, function)(*arguments)
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise BackendError(f"cuda: {function} failed: {getattr(status, 'name', status)}")
    return results[0] if results else None


def _driver() -> Any:
    try:
        from cuda.bindings import driver
    except Exception as error:  # a broken installation may raise anything
        raise BackendUnavailable(f"cuda: NVIDIA's bindings cannot be imported: {one_line(error)}; {REMEDY}") from error
    try:
        checked(driver, "cuInit", 0)  # finds the driver's library, or raises
    except (RuntimeError, BackendError) as error:
        reason = one_line(error).removeprefix("cuda: ")
        raise BackendUnavailable(
            f"cuda: {reason}; the loop on the device needs an NVIDIA GPU with its driver, use device 'cpu'"
        ) from error
    return driver


def _nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except Exception as error:  # as above
        raise BackendUnavailable(f"cuda: its runtime compiler is missing: {one_line(error)}; {REMEDY}") from error
    return nvrtc
