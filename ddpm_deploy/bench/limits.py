"""What this machine can do at most, measured: matrix products in GFLOP/s for each precision, memory in GB/s.

The best of every library that is installed over several sizes counts, so that no row is flattered by a weak peer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

from ddpm_deploy.backends.base import check_threads, device_index, one_line
from ddpm_deploy.bench.machine import describe_cpu, memory_bytes
from ddpm_deploy.bench.products import (
    CPU_MAKERS,
    SIZES,
    Call,
    Maker,
    Size,
    Unavailable,
    cpu_precisions,
    library_threads,
)
from ddpm_deploy.bench.streams import Pass, array_bytes, cpu_passes

BUDGET_S = 10.0
MIN_RUNS = 2  # of one trial, after a first that does not count
TINY: Size = (16, 16, 16)

Seconds = Callable[[Call], float]


@dataclass(frozen=True)
class Trial:
    """One library at one size; value in the unit of its limit, the best of its runs."""

    library: str
    size: str
    value: float


@dataclass(frozen=True)
class Limit:
    """The best of all that was tried. library, size: which that was. skipped: what could not be tried, and why."""

    unit: str
    value: float
    library: str
    size: str
    tried: tuple[Trial, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """Of one device at so many threads. products: by precision. cache_bytes: of the last level, None if unknown."""

    device: str
    threads: int
    products: Mapping[str, Limit]
    bandwidth: Limit
    cache_bytes: int | None
    seconds: float


@dataclass(frozen=True)
class Place:
    """Where limits are measured. seconds: times one call, the device's work included."""

    precisions: tuple[str, ...]
    sizes: tuple[Size, ...]
    makers: Mapping[str, Maker]
    seconds: Seconds
    threads: AbstractContextManager[None]
    passes: AbstractContextManager[list[Pass]]
    cache_bytes: int | None


def measure_limits(
    threads: int, device: str = "cpu", *, precisions: Sequence[str] | None = None, budget_s: float = BUDGET_S
) -> Limits:
    """Measure everything within about `budget_s`, imports apart.

    device: "cpu", "cuda" or "cuda:N". precisions: None is all that the device computes in. Libraries that are missing
    are named in `skipped`; for CUDA torch is needed. ValueError where a precision is measured by none of them.
    """
    check_threads(threads)
    place = cpu_place(threads) if device_index(device) is None else _cuda_place(device)
    wanted = place.precisions if precisions is None else tuple(precisions)
    share = budget_s / (len(wanted) + 1)
    began = time.perf_counter()
    with place.threads:
        products = {precision: best_product(place, precision, threads, share) for precision in wanted}
    with place.passes as passes:
        bandwidth = best_bandwidth(passes, place.seconds, share)
    return Limits(device, threads, products, bandwidth, place.cache_bytes, time.perf_counter() - began)


def cpu_place(threads: int) -> Place:
    """This machine's CPUs."""
    cpu = describe_cpu()
    size_bytes = array_bytes(cpu["cache_bytes"], memory_bytes())
    return Place(
        precisions=cpu_precisions(cpu["flags"]),
        sizes=SIZES,
        makers=CPU_MAKERS,
        seconds=wall_seconds,
        threads=library_threads(threads),
        passes=cpu_passes(size_bytes, threads),
        cache_bytes=cpu["cache_bytes"],
    )


def best_product(place: Place, precision: str, threads: int, budget_s: float) -> Limit:
    """The fastest product of all libraries and sizes; ValueError where no library has this precision."""
    tried: list[Trial] = []
    skipped: dict[str, str] = {}
    for library, maker in place.makers.items():
        reason = _reason_against(maker, precision, threads)
        if reason is None:
            make = partial(_made, maker, precision, threads)
            trials, left_out = _trials(library, make, place, budget_s / len(place.makers))
            tried += trials
            skipped |= left_out
        else:
            skipped[library] = reason
    if not tried:
        raise ValueError(f"precisions: got {precision!r}, which nothing here computes: {skipped}; leave it out")
    return _best("GFLOP/s", tried, skipped)


def best_bandwidth(passes: Sequence[Pass], seconds: Seconds, budget_s: float) -> Limit:
    """The fastest way over the arrays."""
    share = budget_s / len(passes)
    tried = [
        Trial(one.library, f"{one.name}, {one.size_bytes / 2**20:.0f} MiB", one.size_bytes / best_s / 1e9)
        for one in passes
        for best_s in (best_seconds(one.call, seconds, share),)
    ]
    return _best("GB/s", tried, {})


def best_seconds(call: Call, seconds: Seconds, budget_s: float) -> float:
    """The shortest of as many runs as fit into the budget, at least `MIN_RUNS`."""
    seconds(call)
    times: list[float] = []
    while len(times) < MIN_RUNS or sum(times) < budget_s:
        times.append(seconds(call))
    return min(times)


def wall_seconds(call: Call) -> float:
    """Of a call that returns when its work is done."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _trials(
    library: str, make: Callable[[Size], Call], place: Place, budget_s: float
) -> tuple[list[Trial], dict[str, str]]:
    """All sizes, the smallest first; those that would not fit into the rest of the budget are left out."""
    ends = time.perf_counter() + budget_s
    trials: list[Trial] = []
    left_out = {}
    for size in place.sizes:
        gflop, name = 2e-9 * size[0] * size[1] * size[2], "x".join(map(str, size))
        expected_s = (1 + MIN_RUNS) * gflop / trials[-1].value if trials else 0.0
        if time.perf_counter() + expected_s > ends and trials:
            left_out[f"{library} {name}"] = "would not fit into the time for this library"
            continue
        best_s = best_seconds(make(size), place.seconds, budget_s / len(place.sizes) / 2)
        trials.append(Trial(library, name, gflop / best_s))
    return trials, left_out


def _made(maker: Maker, precision: str, threads: int, size: Size) -> Call:
    return maker(size, precision, threads)


def _reason_against(maker: Maker, precision: str, threads: int) -> str | None:
    """Try it on a tiny product, which also imports the library before anything is timed."""
    try:
        maker(TINY, precision, threads)()
    except Unavailable as error:
        return str(error)
    except Exception as error:  # a library that is broken is passed over, and the report says so
        return one_line(error)
    return None


def _best(unit: str, tried: Sequence[Trial], skipped: Mapping[str, str]) -> Limit:
    best = max(tried, key=lambda trial: trial.value)
    return Limit(unit, best.value, best.library, best.size, tuple(tried), skipped)


def _cuda_place(device: str) -> Place:
    from ddpm_deploy.bench import cuda_limits as cuda

    place = cuda.place_of(device)
    return Place(
        precisions=tuple(cuda.DTYPES),
        sizes=cuda.SIZES,
        makers={"torch": partial(cuda.torch_product, place)},
        seconds=partial(cuda.event_seconds, place),
        threads=nullcontext(),
        passes=cuda.passes(place),
        cache_bytes=cuda.cache_bytes(place),
    )
