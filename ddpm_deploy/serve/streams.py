"""Streams: samplers that draw side by side on one CPU, each with its share of the threads.

A small network gains next to nothing from a second thread in a call, and what an engine does between two calls keeps
one core busy only. With a thread for each stream no core waits for another.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from ddpm_deploy.backends.base import check_threads, usable_cpus
from ddpm_deploy.bundle import Bundle, default_bundle, read_bundle
from ddpm_deploy.sampler import Sampler
from ddpm_deploy.serve.request import is_whole

# torch's threads are the whole process's, OpenVINO pins those of every sampler to the same cores, and what `auto` takes
# was tuned with all of them
SPLITTABLE = ("onnxruntime",)
MOST = 8  # beyond it they wait for each other's Python
SLOWER = 1.5  # what a call may be with half the threads, which at best is twice as slow
LARGE_S = 0.02  # a call that takes longer gains from all its threads
TIMED_S = 0.05


@contextmanager
def open_streams(
    bundle: str | os.PathLike[str] | Bundle | None = None,
    streams: int | None = None,
    *,
    backend: str = "onnxruntime",
    device: str = "cpu",
    threads: int | None = None,
    digest: str | None = None,
    **opening: Any,
) -> Iterator[list[Sampler]]:
    """Samplers for an `Engine`, which end with the block.

    streams: how many; None is one, or with ONNX Runtime on a CPU as many, up to 8, as let a sample that is drawn alone
    take at most half as long again, which is measured. threads: of all of them together, None is every CPU that the
    process may use. The rest: see `Sampler.load`. Raises ValueError for more streams than threads, and where a backend
    cannot share its threads out.
    """
    check_threads(threads)
    if not isinstance(bundle, Bundle):
        bundle = read_bundle(default_bundle() if bundle is None else bundle, digest=digest, verify=False)
    can_split = device == "cpu" and backend in SPLITTABLE
    total = None if not can_split else usable_cpus() if threads is None else threads
    _check(streams, total, f"{backend} on {device}")
    with ExitStack() as stack:

        def load(share: int | None) -> Sampler:
            sampler = Sampler.load(bundle, backend=backend, device=device, threads=share, digest=digest, **opening)
            return stack.enter_context(sampler)

        if total is None:
            yield [load(threads)]
            return
        tried: dict[int, Sampler] = {}

        def timed(share: int) -> float:
            tried[share] = load(share)
            return _call_s(tried[share])

        count = useful_streams(timed, total) if streams is None else streams
        shares = [total // count + (i < total % count) for i in range(count)]
        samplers = [tried.pop(share) if share in tried else load(share) for share in shares]
        for other in tried.values():
            other.close()
        yield samplers


def useful_streams(call_s: Callable[[int], float], total: int) -> int:
    """How many leave a sample alone fast enough. call_s: seconds of a call of one sample, by its threads.

    Half the threads while these are so little slower; a slow call, of a large network, is not tried with fewer.
    """
    streams, fastest = 1, call_s(total)
    while fastest < LARGE_S and 2 * streams <= min(total, MOST):
        seconds = call_s(total // (2 * streams))
        if seconds > SLOWER * fastest:
            break
        streams, fastest = 2 * streams, min(seconds, fastest)
    return streams


def _call_s(sampler: Sampler) -> float:
    """The fastest call of some."""
    sampler.evaluate_zeros(1)
    until, fastest = time.perf_counter() + TIMED_S, math.inf
    while True:
        begin = time.perf_counter()
        sampler.evaluate_zeros(1)
        fastest = min(fastest, time.perf_counter() - begin)
        if time.perf_counter() > until:
            return fastest


def _check(streams: int | None, total: int | None, where: str) -> None:
    if streams is None:
        return
    if not is_whole(streams) or streams < 1:
        raise ValueError(f"streams: got {streams!r}, expected a whole number of at least 1")
    if streams > 1 and total is None:
        raise ValueError(f"streams: got {streams} with {where}, whose threads cannot be shared out; expected 1")
    if total is not None and streams > total:
        raise ValueError(f"streams: got {streams}, expected at most {total}, one for each thread")
