"""The largest batch that an engine makes is one that gains something."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from numpy_network import numpy_sampler

from ddpm_deploy.serve import Engine
from ddpm_deploy.serve.buckets import Buckets
from ddpm_deploy.serve.width import smallest_useful, useful_batch

POWERS = (1, 2, 4, 8, 16, 32)


@pytest.mark.parametrize(
    ("fixed_ms", "each_ms", "expected"),
    [
        (5.0, 0.0, 32),  # a device that is not full yet
        (0.5, 0.1, 28),  # n / (5 + n) is within 2 % of 32 / 37 from 28 on
        (4.0, 27.0, 6),  # a processor that is full with one sample
        (0.0, 10.0, 1),
    ],
)
def test_a_batch_is_as_large_as_gains_something(fixed_ms: float, each_ms: float, expected: int) -> None:
    seconds = {size: fixed_ms + each_ms * size for size in POWERS}
    assert smallest_useful(range(1, 33), seconds) == expected


def test_only_sizes_that_there_are_count() -> None:
    assert smallest_useful((1, 8, 32), {1: 5.0, 8: 12.0, 32: 36.0}) == 32
    assert smallest_useful((1, 8, 32), {1: 1.1, 8: 8.1, 32: 32.1}) == 8
    assert smallest_useful((3,), {3: 1.0}) == 3


@pytest.mark.parametrize("size", POWERS)
@pytest.mark.parametrize("factor", [0.9, 1.2])
def test_a_call_that_was_measured_wrong_does_not_decide(size: int, factor: float) -> None:
    seconds = {n: 0.3 + 0.1 * n for n in POWERS}
    seconds[size] *= factor
    assert smallest_useful(range(1, 33), seconds) >= 18


def test_sizes_are_timed_from_the_smallest_on_and_slow_ones_not_where_they_gain_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called, now = [], [0.0]
    monkeypatch.setattr("ddpm_deploy.serve.width.time", SimpleNamespace(perf_counter=lambda: now[0]))

    def evaluate(size: int) -> None:
        called.append(size)
        now[0] += 0.1 * size

    assert useful_batch(range(1, 33), evaluate) == 1
    assert sorted(set(called)) == [1, 2, 4], "went on although nothing was gained"


def test_a_narrowed_bucket_makes_no_larger_batch_and_recovers_from_a_lack_of_memory_within_it() -> None:
    buckets = Buckets(range(1, 33))
    buckets.narrow(12)
    assert buckets.limit == 12
    buckets.shrink(12)
    assert buckets.limit == 11
    buckets.narrow(8)
    assert (buckets.limit, buckets.room(40)) == (8, 8)


def test_a_warm_engine_draws_in_batches_that_gain_something(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = numpy_sampler()
    run = sampler.backend.run

    def slow(feeds):  # as long for each sample as for the first
        time.sleep(0.01 * len(feeds["t"]))
        return run(feeds)

    monkeypatch.setattr(sampler.backend, "run", slow)
    with Engine(sampler, buckets=(1, 2, 4, 8)) as engine:
        engine.warmup()
        sampler.backend.calls.clear()
        handles = [engine.submit(steps=3, seed=seed) for seed in range(8)]
        for handle in handles:
            handle.result(20)
    assert max(len(call) for call in sampler.backend.calls) < 8
