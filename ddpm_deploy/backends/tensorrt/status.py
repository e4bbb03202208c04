"""What TensorRT and TensorRT-RTX can do on this machine, for reports."""

from __future__ import annotations

from dataclasses import dataclass

from ddpm_deploy.backends.cuda.gpus import Gpu, find_gpu
from ddpm_deploy.backends.tensorrt.adapter import MODULES, open_adapter
from ddpm_deploy.backends.tensorrt.settings import CAPABILITIES, TENSORRT_RTX
from ddpm_deploy.errors import BackendUnavailable


@dataclass(frozen=True)
class Status:
    """builds, runs: whether engines can be built here, and whether they could be run. reason: why not, in words."""

    name: str
    version: str | None
    builds: bool
    runs: bool
    reason: str | None


def statuses() -> tuple[Status, ...]:
    """Of every runtime."""
    gpu = find_gpu()
    return tuple(_status(name, gpu) for name in MODULES)


def _status(name: str, gpu: Gpu | None) -> Status:
    version = None
    try:
        adapter = open_adapter(name)
        version = adapter.version
        adapter.open()
    except BackendUnavailable as error:
        return Status(name, version, builds=False, runs=False, reason=str(error))
    reason = why_not_run(name, gpu)
    return Status(name, version, builds=True, runs=reason is None, reason=reason)


def why_not_run(name: str, gpu: Gpu | None) -> str | None:
    """Why a runtime's engines cannot run on this GPU, or None where they can."""
    if gpu is None:
        return "engines run on an NVIDIA GPU, and this machine shows none"
    if name == TENSORRT_RTX and gpu.compute_capability not in CAPABILITIES:
        have = ", ".join(CAPABILITIES)
        return f"{gpu.name} has compute capability {gpu.compute_capability}, expected one of {have}"
    return None
