"""A sample that fails, fails alone; a device that fails leaves the work to the others."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from numpy_network import PATIENCE_S, SHAPE, NumpyBackend, numpy_sampler

from ddpm_deploy import BackendError, NonFiniteError, Sampler
from ddpm_deploy.errors import EngineClosed
from ddpm_deploy.noise import initial_noise
from ddpm_deploy.serve import Engine
from ddpm_deploy.serve.buckets import CALM_CALLS, Buckets

Feeds = Mapping[str, np.ndarray]
POISON = 13  # a seed


def poisoned(feeds: Feeds) -> np.ndarray:
    """Which lanes are at the first step of the poisonous sample."""
    return (feeds["x"] == initial_noise(POISON, [0], SHAPE)).all(axis=(1, 2, 3))


def predict_nan(feeds: Feeds, m: np.ndarray) -> None:
    m[poisoned(feeds), 0, 0, 0] = np.nan


def refuse(feeds: Feeds, m: np.ndarray) -> None:
    if poisoned(feeds).any():
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
    monkeypatch.setattr(NumpyBackend, "_check", lambda self, feeds: [][0])
    with Engine(sampler) as engine:
        with pytest.raises(IndexError):
            engine.submit(steps=3).result(PATIENCE_S)
        monkeypatch.undo()
        assert engine.submit(steps=3).result(PATIENCE_S).shape == (1, *SHAPE)
    assert "a step failed" in caplog.text


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
