"""A sample that fails, fails alone; a device that fails leaves the work to the others."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping

import numpy as np
import pytest
from numpy_network import PATIENCE_S, SHAPE, NumpyBackend, numpy_sampler

from ddpm_deploy import BackendError, NonFiniteError, Sampler
from ddpm_deploy.errors import EngineClosed
from ddpm_deploy.noise import initial_noise
from ddpm_deploy.plan import Row
from ddpm_deploy.serve import Engine
from ddpm_deploy.serve.buckets import CALM_CALLS, Buckets
from ddpm_deploy.serve.warming import largest_fitting

Feeds = Mapping[str, np.ndarray]
POISON = 13  # a seed
BIG = 12345.0


def poisoned(feeds: Feeds) -> np.ndarray:
    """Which lanes are at the first step of the poisonous sample."""
    return (feeds["x"] == initial_noise(POISON, [0], SHAPE)).all(axis=(1, 2, 3))


def predict_nan(feeds: Feeds, m: np.ndarray) -> None:
    m[poisoned(feeds), 0, 0, 0] = np.nan


def refuse(feeds: Feeds, m: np.ndarray) -> None:
    if poisoned(feeds).any():
        raise RuntimeError("no kernel for this")


def refuse_all(feeds: Feeds, m: np.ndarray) -> None:
    raise RuntimeError("no kernel for this")


def no_memory_beyond(size: int):
    def fault(feeds: Feeds, m: np.ndarray) -> None:
        if len(feeds["t"]) > size:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 1234")

    return fault


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [(predict_nan, NonFiniteError, "row 0 .*not finite"), (refuse, BackendError, "no kernel")],
)
def test_a_poisonous_sample_fails_alone(sampler: Sampler, fault, error, message: str) -> None:
    sampler.backend.fault = fault
    sampler.backend.gate.shut()
    with Engine(sampler) as engine:
        good = [engine.submit(2, solver="unipc", steps=5, seed=seed) for seed in range(3)]
        bad = engine.submit(3, solver="unipc", steps=5, seed=POISON)
        sampler.backend.gate.open()
        outcomes = bad.outcomes(PATIENCE_S)
        found = [handle.result(PATIENCE_S) for handle in good]
        with pytest.raises(error, match=message):
            bad.result()
    sampler.backend.fault = None
    for seed, samples in enumerate(found):
        np.testing.assert_array_equal(samples, sampler.sample(2, solver="unipc", steps=5, seed=seed))
    assert isinstance(outcomes[0], error)
    rest = sampler.sample(2, solver="unipc", steps=5, seed=POISON, start=1)
    np.testing.assert_array_equal(outcomes[1:], rest)


@pytest.mark.parametrize("half", [1, 3])
def test_nan_with_or_without_the_condition_fails_a_guided_sample(guided: Sampler, half: int) -> None:
    def fault(feeds: Feeds, m: np.ndarray) -> None:
        m[poisoned(feeds) & (feeds["labels"] == half)] = np.inf

    guided.backend.fault = fault
    with Engine(guided) as engine:
        bad = engine.submit(condition={"labels": 1}, guidance=2.0, steps=4, seed=POISON)
        good = engine.submit(condition={"labels": 1}, guidance=2.0, steps=4, seed=1)
        with pytest.raises(NonFiniteError):
            bad.result(PATIENCE_S)
        found = good.result(PATIENCE_S)
    np.testing.assert_array_equal(found, guided.sample(1, condition={"labels": 1}, guidance=2.0, steps=4, seed=1))


def test_nan_in_a_learned_variance_that_the_plan_does_not_take_does_no_harm() -> None:
    sampler = numpy_sampler(variance="learned")

    def fault(feeds: Feeds, m: np.ndarray) -> None:
        m[:, SHAPE[0] :] = np.nan

    sampler.backend.fault = fault
    with Engine(sampler) as engine:
        found = engine.submit(solver="ddim", steps=4).result(PATIENCE_S)
        with pytest.raises(NonFiniteError):
            engine.submit(solver="ddpm", steps=4).result(PATIENCE_S)
    np.testing.assert_array_equal(found, sampler.sample(1, solver="ddim", steps=4))


def test_lack_of_memory_shrinks_the_batch_and_loses_nothing(sampler: Sampler) -> None:
    sampler.backend.fault = no_memory_beyond(3)
    sampler.backend.gate.shut()
    with Engine(sampler) as engine:
        handles = [engine.submit(3, solver="ddim", steps=6, seed=seed) for seed in range(6)]
        sampler.backend.gate.open()
        found = [handle.result(PATIENCE_S) for handle in handles]
    sizes = [len(call) for call in sampler.backend.calls]
    assert max(sizes) > 3
    assert sum(size > 3 for size in sizes) < 10, "what did not fit was tried again and again"
    for seed, samples in enumerate(found):
        np.testing.assert_array_equal(samples, sampler.sample(3, solver="ddim", steps=6, seed=seed))


def test_where_not_even_one_fits_it_is_an_error_of_the_request(sampler: Sampler) -> None:
    sampler.backend.fault = no_memory_beyond(0)
    with Engine(sampler) as engine, pytest.raises(BackendError, match="allocate memory"):
        engine.submit(2, steps=3).result(PATIENCE_S)


def test_a_device_that_fails_again_and_again_is_given_up_and_the_other_goes_on(sampler: Sampler) -> None:
    broken = numpy_sampler()
    broken.close()
    with Engine([broken, sampler], buckets=(1,)) as engine:
        outcomes = [engine.submit(steps=3, seed=seed).outcomes(PATIENCE_S)[0] for seed in range(50)]
        assert engine.accepting
        last = [engine.submit(steps=3, seed=seed).result(PATIENCE_S) for seed in range(10)]
    failed = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    assert len(failed) <= 3
    assert all("the backend is closed" in str(error) for error in failed)
    np.testing.assert_array_equal(last[4], sampler.sample(1, steps=3, seed=4))


def test_requests_that_fail_again_and_again_do_not_cost_the_device(sampler: Sampler) -> None:
    sampler.backend.fault = refuse
    with Engine(sampler) as engine:
        for _ in range(10):
            assert isinstance(engine.submit(steps=3, seed=POISON).outcomes(PATIENCE_S)[0], BackendError)
        assert engine.alive
        assert engine.submit(steps=3).result(PATIENCE_S).shape == (1, *SHAPE)


def test_when_the_last_device_is_lost_nobody_is_left_waiting(sampler: Sampler) -> None:
    sampler.close()
    engine = Engine(sampler, buckets=(1,))
    handles = []
    with pytest.raises(EngineClosed, match="all its devices have failed"):  # noqa: PT012
        for _ in range(1000):
            handles.append(engine.submit(2, steps=3, wait_s=PATIENCE_S))
    for handle in handles:
        assert isinstance(handle.outcomes(PATIENCE_S)[-1], BackendError)
    assert (engine.held, engine.accepting, engine.alive) == (0, False, False)
    engine.close()


def test_a_defect_of_ours_reaches_the_caller(sampler: Sampler, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setattr(NumpyBackend, "run", lambda self, feeds: [][0])
    with Engine(sampler) as engine:
        with pytest.raises(IndexError):
            engine.submit(steps=3).result(PATIENCE_S)
        monkeypatch.undo()
        assert engine.submit(steps=3).result(PATIENCE_S).shape == (1, *SHAPE)
    assert "a step failed" in caplog.text


@pytest.mark.parametrize("place", ["_next_batch", "_settle"])
def test_a_defect_outside_of_a_step_leaves_nobody_waiting(sampler: Sampler, monkeypatch, caplog, place: str) -> None:
    def defect(*_: object) -> None:
        raise IndexError("a defect")

    sampler.backend.gate.shut()
    engine = Engine(sampler)
    first = engine.submit(steps=3)
    sampler.backend.gate.await_call()
    monkeypatch.setattr(engine._workers[0], place, defect)
    second = engine.submit(steps=3)
    sampler.backend.gate.open()
    for handle in (first, second):
        with pytest.raises(IndexError, match="a defect"):
            handle.result(PATIENCE_S)
    assert (engine.held, engine.accepting, engine.alive) == (0, False, False)
    assert "device 0: an unexpected error" in caplog.text
    engine.close()


def test_a_device_without_memory_even_for_zeros_is_given_up(sampler: Sampler, monkeypatch) -> None:
    def no_memory(feeds: Feeds) -> None:
        raise MemoryError

    monkeypatch.setattr(sampler.backend, "run", no_memory)
    engine = Engine(sampler)
    for _ in range(3):
        assert isinstance(engine.submit(steps=3).outcomes(PATIENCE_S)[0], MemoryError)
    engine._workers[0].join(PATIENCE_S)
    assert not engine.alive
    engine.close()


@pytest.mark.parametrize(("sizes", "fit", "expected"), [((1, 2, 4, 8), 5, 4), (tuple(range(1, 33)), 20, 16)])
def test_a_warm_up_leaves_out_what_memory_does_not_suffice_for(
    sampler: Sampler, sizes, fit: int, expected: int
) -> None:
    sampler.backend.fault = no_memory_beyond(fit)
    assert largest_fitting(sizes, sampler.warmup) == expected
    with Engine(sampler, buckets=sizes) as engine:
        engine.warmup()
        assert engine._workers[0].stepper.buckets.sizes[-1] <= expected
        assert engine.submit(30, steps=2).result(PATIENCE_S).shape == (30, *SHAPE)


@pytest.mark.parametrize("fault", [no_memory_beyond(0), refuse_all])
def test_a_warm_up_fails_where_not_even_the_smallest_batch_works(sampler: Sampler, fault) -> None:
    sampler.backend.fault = fault
    with Engine(sampler) as engine, pytest.raises(BackendError):
        engine.warmup()


def test_what_overflows_in_the_last_row_fails_alone_and_shows_no_preview(sampler: Sampler, monkeypatch) -> None:
    apply = Row.apply

    def overflowing(self, stack, m, z):
        state, x0 = apply(self, stack, m, z)
        for image in (state[0], x0):
            image[np.isclose(m[:, 0, 0, 0], BIG)] = np.inf
        return state, x0

    def mark(feeds: Feeds, m: np.ndarray) -> None:
        m[poisoned(feeds), 0, 0, 0] = BIG

    monkeypatch.setattr(Row, "apply", overflowing)
    sampler.backend.fault = mark
    with Engine(sampler) as engine:
        bad = engine.submit(2, steps=1, seed=POISON, preview_every=1)
        outcomes = bad.outcomes(PATIENCE_S)
    assert isinstance(outcomes[0], NonFiniteError)
    assert "the sample is not finite" in str(outcomes[0])
    assert np.isfinite(outcomes[1]).all()
    assert list(bad._previews) == [1]


def test_close_waits_no_longer_than_it_is_told(sampler: Sampler) -> None:
    sampler.backend.gate.shut()
    engine = Engine(sampler)
    handle = engine.submit(steps=3)
    sampler.backend.gate.await_call()
    began = time.monotonic()
    engine.close(0.05)
    assert time.monotonic() - began < PATIENCE_S / 2
    with pytest.raises(EngineClosed):
        handle.result(0)
    sampler.backend.gate.open()
    engine.close()
    assert not engine._workers[0].is_alive()


# -- buckets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lanes", "room"), [(1, 1), (2, 1), (3, 4), (4, 4), (5, 4), (6, 8), (8, 8), (9, 8), (99, 8)])
def test_a_bucket_is_padded_only_if_it_is_nearly_full(lanes: int, room: int) -> None:
    assert Buckets((8, 1, 4)).room(lanes) == room


def test_the_largest_bucket_shrinks_at_once_and_grows_again_slowly() -> None:
    buckets = Buckets((1, 2, 4, 8))
    buckets.shrink(8)
    assert buckets.limit == 4
    buckets.shrink(3)
    assert buckets.limit == 2
    for _ in range(CALM_CALLS - 1):
        buckets.succeeded(2)
        buckets.succeeded(1)
    assert buckets.limit == 2
    buckets.succeeded(2)
    assert buckets.limit == 4
    buckets.shrink(1)
    assert buckets.limit == 1


def test_buckets_may_be_read_while_they_are_narrowed() -> None:
    before, faults = sys.getswitchinterval(), []

    def read(buckets: Buckets, over: threading.Event) -> None:
        try:
            while not over.is_set():
                buckets.room(buckets.limit)
                buckets.padded(32)
        except IndexError as error:
            faults.append(error)

    sys.setswitchinterval(1e-6)
    try:
        for _ in range(30):
            buckets, over = Buckets(range(1, 33)), threading.Event()
            reader = threading.Thread(target=read, args=(buckets, over))
            reader.start()
            for largest in range(31, 0, -1):
                buckets.narrow(largest)
            over.set()
            reader.join(PATIENCE_S)
    finally:
        sys.setswitchinterval(before)
    assert faults == []
    assert (buckets.limit, buckets.padded(7)) == (1, 7)
