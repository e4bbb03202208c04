"""The whole reverse loop resident on a GPU: see `loop`. NVIDIA's bindings are imported when one is opened.

Options of every backend that has such a loop: `loop` (False does without), `buckets` (batch sizes to make graphs for).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from ddpm_deploy.backends.cuda.device import Device, OutOfDeviceMemory
from ddpm_deploy.backends.cuda.loop import BUCKETS, Draw, Evaluator, Loop
from ddpm_deploy.errors import BackendUnavailable, BundleError

__all__ = ["BUCKETS", "LOOP_OPTIONS", "Device", "Draw", "Evaluator", "Loop", "OutOfDeviceMemory", "open_loop"]

LOOP_OPTIONS = ("loop", "buckets")
MAX_BUCKET = 4096

logger = logging.getLogger(__name__)


def open_loop(
    name: str, index: int, make: Callable[[Device], Evaluator], options: Mapping[str, Any]
) -> tuple[Loop | None, str]:
    """(the loop, what to say of it in a backend's details); None where it is not wanted or cannot be had.

    make: opens the runtime on the device. Without a loop the host drives each row, which is slower and gives the same
    samples; the reason is logged.
    """
    buckets = checked_buckets(options.get("buckets", BUCKETS))
    if options.get("loop", True) is False:
        return None, "driven by the host, as asked for"
    from ddpm_deploy.backends.cuda.driver import CudaDevice

    try:
        device = CudaDevice(index)
    except BackendUnavailable as error:
        return None, _without(name, error)
    try:
        return Loop(device, make(device), buckets), "resident on the device"
    except (BackendUnavailable, BundleError) as error:
        device.close()
        return None, _without(name, error)
    except BaseException:
        device.close()
        raise


def _without(name: str, error: Exception) -> str:
    logger.warning("%s: the loop is driven by the host: %s", name, error)
    return f"driven by the host: {error}"


def checked_buckets(buckets: Any) -> tuple[int, ...]:
    """Batch sizes that somebody asked for; ValueError where they are none."""
    found = tuple(buckets) if isinstance(buckets, list | tuple) else ()
    if not found or any(type(size) is not int or not 1 <= size <= MAX_BUCKET for size in found):
        raise ValueError(f"options: buckets: got {buckets!r}, expected batch sizes from 1 to {MAX_BUCKET}")
    return found
