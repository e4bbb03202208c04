"""How much of a whole sampling's time the device computes, from the kernels that it ran."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ddpm_deploy import Sampler

CALLS = 10

Call = Callable[[], object]
Spans = Sequence[tuple[float, float]]


def host_facts(call: Call, stream: int | None) -> dict[str, Any]:
    """Seconds of one call, the median of a few: on the host, and between two events on the loop's stream.

    stream: its handle, None for torch's current one.
    """
    wall_s, events_s = _median(_wall_s, call), _median(lambda one: _events_s(one, stream), call)
    return {"wall_s": wall_s, "events_s": events_s, "wall_over_events": wall_s / events_s}


def kernel_facts(call: Call, wall_s: float) -> dict[str, Any]:
    """Of one call under the profiler, which may slow down whatever is timed after it.

    span: from the first kernel's beginning to the last one's end. kernels: while at least one of them ran, copies
    included. wall_s: of a call without the profiler.
    """
    spans = [_kernels(call) for _ in range(2)][-1]  # the first also starts the profiler
    if not spans:
        return {"reason": "the profiler saw no kernel"}
    kernels_s, span_s = covered(spans) / 1e6, (max(end for _, end in spans) - min(begin for begin, _ in spans)) / 1e6
    return {
        "span_s": span_s,
        "kernels_s": kernels_s,
        "kernels": len(spans),
        "wall_over_span": wall_s / span_s,
        "wall_over_kernels": wall_s / kernels_s,
    }


def one_picture(sampler: Sampler) -> Callable[[], object]:
    """Draws it by the default plan."""
    return partial(sampler.sample, 1, plan=sampler.plan(), batch_size=1)


def stream_of(sampler: Sampler) -> int | None:
    """Of its loop on the device; None where the host drives it."""
    loop: Any = getattr(sampler.backend, "loop", None)
    return None if loop is None else int(loop.device.stream)


def covered(spans: Spans) -> float:
    """The length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def _median(seconds: Callable[[Call], float], call: Call) -> float:
    seconds(call)
    return statistics.median(seconds(call) for _ in range(CALLS))


def _wall_s(call: Call) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _events_s(call: Call, stream: int | None) -> float:
    import torch

    cuda: Any = torch.cuda  # partly untyped
    place = cuda.current_stream() if stream is None else cuda.ExternalStream(stream)
    began, ended = (cuda.Event(enable_timing=True) for _ in range(2))
    began.record(place)
    call()
    ended.record(place)
    ended.synchronize()
    milliseconds: float = began.elapsed_time(ended)
    return milliseconds / 1e3


def _kernels(call: Call) -> list[tuple[float, float]]:
    """(begin, end) in microseconds of everything that ran on the device, of whatever library."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        call()
        torch.cuda.synchronize()
    events: Any = found.events() or ()
    return [(e.time_range.start, e.time_range.end) for e in events if e.device_type.name == "CUDA"]
