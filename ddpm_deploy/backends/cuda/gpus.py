"""The NVIDIA GPUs of this machine, asked through their driver's own library."""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

LIBRARY = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
DRIVER_FILE = Path("/proc/driver/nvidia/version")
NAME_BYTES, UUID_BYTES = 256, 16
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR in cuda.h


@dataclass(frozen=True)
class Gpu:
    """compute_capability: such as "9.0". driver: the version of the driver, or of the CUDA that it serves."""

    name: str
    compute_capability: str
    driver: str


def find_gpu(index: int = 0) -> Gpu | None:
    """A GPU that this process may use, the first by default, or None."""
    cuda = _library()
    return None if cuda is None else query(cuda, index)


def visible_uuids() -> tuple[str, ...]:
    """Of the GPUs that this process may use, in CUDA's order, as nvidia-smi writes them; none without a driver."""
    cuda = _library()
    return () if cuda is None else query_uuids(cuda)


def query(cuda: Any, index: int = 0) -> Gpu | None:
    """A GPU according to an open driver library, or None where there is none of that number."""
    device, major, minor, version = (ctypes.c_int() for _ in range(4))
    name = ctypes.create_string_buffer(NAME_BYTES)
    failed = (
        cuda.cuInit(0)
        or cuda.cuDeviceGet(ctypes.byref(device), index)
        or cuda.cuDeviceGetName(name, NAME_BYTES, device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, device)
        or cuda.cuDriverGetVersion(ctypes.byref(version))
    )
    if failed:
        return None
    driver = _kernel_driver() or f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    return Gpu(name.value.decode(errors="replace"), f"{major.value}.{minor.value}", driver)


def query_uuids(cuda: Any) -> tuple[str, ...]:
    """As `visible_uuids`, according to an open driver library; a part of a GPU (MIG) has that of the whole."""
    count = ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    return tuple(_uuid(cuda, index) for index in range(count.value))


def _uuid(cuda: Any, index: int) -> str:
    device, found = ctypes.c_int(), (ctypes.c_ubyte * UUID_BYTES)()
    if cuda.cuDeviceGet(ctypes.byref(device), index) or cuda.cuDeviceGetUuid(ctypes.byref(found), device):
        return ""
    return f"GPU-{UUID(bytes=bytes(found))}"


def _library() -> Any:
    """The driver's library, None where there is none."""
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError:
        return None


def _kernel_driver() -> str | None:
    try:
        text = DRIVER_FILE.read_text()
    except OSError:
        return None
    found = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)\s", text)
    return found[1] if found else None
