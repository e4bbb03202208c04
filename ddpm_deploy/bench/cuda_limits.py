"""The limits of a CUDA device, through torch and timed by its events."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ddpm_deploy.backends.torch import place_for, tf32
from ddpm_deploy.bench.products import Call, Size, Unavailable
from ddpm_deploy.bench.streams import Pass

SIZES: tuple[Size, ...] = (  # by work: squares, and 3x3 convolutions of batches written as products
    (32768, 1152, 128),
    (2048, 2048, 2048),
    (16384, 2304, 256),
    (4096, 4096, 4096),
    (8192, 8192, 8192),
)
DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,  # as TensorRT and torch compute float32 unless they are told not to
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.int8,
}
CALLS = 5  # between two events, so that the launch of one hides behind the work of another
ARRAY_BYTES = 2**30


def place_of(device: str) -> torch.device:
    """The device; BackendUnavailable where torch does not see it."""
    return place_for(device)


def torch_product(place: torch.device, size: Size, precision: str, threads: int) -> Call:
    """A product on the device; threads has no meaning there."""
    if precision not in DTYPES:
        raise Unavailable(f"torch has no {precision} product on {place}")
    m, k, n = size
    dtype = DTYPES[precision]
    if precision == "int8":
        a, b = (torch.randint(-128, 128, shape, dtype=dtype, device=place) for shape in ((m, k), (n, k)))
        return lambda: torch._int_mm(a, b.T)
    a, b, out = (torch.randn(shape, device=place).to(dtype) for shape in ((m, k), (k, n), (m, n)))
    if dtype != torch.float32:
        return lambda: torch.mm(a, b, out=out)
    return _with_tf32(precision == "tf32", lambda: torch.mm(a, b, out=out))


def event_seconds(place: torch.device, call: Call) -> float:
    """Of one call among `CALLS` that follow each other on the device."""
    with torch.cuda.device(place):
        event: Any = torch.cuda.Event  # untyped in torch
        began, ended = (event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        began.record()
        for _ in range(CALLS):
            call()
        ended.record()
        torch.cuda.synchronize()
        milliseconds: float = began.elapsed_time(ended)
    return milliseconds / 1e3 / CALLS


@contextmanager
def passes(place: torch.device) -> Iterator[list[Pass]]:
    """Copy and triad (a = b + 3 c) over three float32 arrays."""
    a, b, c = (torch.full((ARRAY_BYTES // 4,), value, device=place) for value in (0.0, 1.0, 2.0))
    yield [
        Pass("torch", "copy", 2 * ARRAY_BYTES, lambda: a.copy_(b)),
        Pass("torch", "triad", 3 * ARRAY_BYTES, lambda: torch.add(b, c, alpha=3, out=a)),
    ]


def cache_bytes(place: torch.device) -> int | None:
    """The device's second-level cache."""
    properties: Any = torch.cuda.get_device_properties(place)
    found: int | None = getattr(properties, "L2_cache_size", None)
    return found


def _with_tf32(allowed: bool, call: Callable[[], object]) -> Call:
    def product() -> None:
        with tf32(allowed):
            call()

    return product
