"""The resident loop, with each runtime, on a host that stands in for a GPU: the same samples as the host's own loop."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

from ddpm_deploy import Sampler
from ddpm_deploy.backends.auto import AutoBackend
from ddpm_deploy.backends.cuda import Loop, loop, open_loop
from ddpm_deploy.bundle import Bundle
from ddpm_deploy.errors import BackendError, BackendUnavailable, NonFiniteError

OpenLoop = Callable[..., Loop]
ATOL = 5e-4  # nothing pulls a trajectory of random weights back, so rounding grows
LABELS = np.array([0, 1, 2, 1, 0], np.int64)


@pytest.fixture(scope="module")
def by_host(stepped: Bundle) -> Any:
    with Sampler.load(stepped, threads=1) as sampler:
        yield sampler


def resident(bundle: Bundle, made: Loop) -> Sampler:
    """A sampler whose backend has this loop, and fails when the host drives it."""
    sampler = Sampler.load(bundle, threads=1)
    sampler.backend.loop = made  # type: ignore[attr-defined]
    return sampler


def both(sampler: Sampler, by_host: Sampler, n: int, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    settings["condition"] = {"labels": LABELS[:n]}
    return sampler.sample(n, **settings), by_host.sample(n, **settings)


@pytest.mark.parametrize(("solver", "steps"), [("ddim", 5), ("unipc", 6), ("heun", 4), ("deis", 5), ("dpmpp_2m", 3)])
def test_samples_are_those_of_the_host(
    stepped: Bundle, by_host: Sampler, open_loop_on: OpenLoop, solver: str, steps: int
) -> None:
    with resident(stepped, open_loop_on(stepped)) as sampler:
        got, expected = both(sampler, by_host, 3, solver=solver, steps=steps, seed=7, start=40)
    np.testing.assert_allclose(got, expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize("settings", [{"solver": "ddpm"}, {"solver": "dpmpp_2m_sde", "steps": 7},
                                      {"solver": "ddim", "steps": 6, "eta": 0.5}])  # fmt: skip
def test_noise_is_drawn_on_the_device(
    stepped: Bundle, by_host: Sampler, open_loop_on: OpenLoop, settings: dict[str, Any]
) -> None:
    with resident(stepped, open_loop_on(stepped)) as sampler:
        got, expected = both(sampler, by_host, 2, **settings)
    np.testing.assert_allclose(got, expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("rows", [3, 4, 7, 11])
def test_every_number_of_samples_and_of_rows_fits_into_buckets_and_captured_stretches(
    stepped: Bundle, by_host: Sampler, open_loop_on: OpenLoop, monkeypatch: pytest.MonkeyPatch, n: int, rows: int
) -> None:
    monkeypatch.setattr(loop, "CHUNK", 4)
    with resident(stepped, open_loop_on(stepped, (2, 4))) as sampler:
        got, expected = both(sampler, by_host, n, solver="unipc", steps=rows, seed=n)
    np.testing.assert_allclose(got, expected, rtol=0, atol=ATOL)


def test_x_T_that_is_given_is_uploaded(stepped: Bundle, by_host: Sampler, open_loop_on: OpenLoop) -> None:
    x_T = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)
    with resident(stepped, open_loop_on(stepped)) as sampler:
        got, expected = both(sampler, by_host, 3, x_T=x_T, solver="ddpm", steps=4)
    np.testing.assert_allclose(got, expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize("interval", [None, (20.0, 70.0)])
@pytest.mark.parametrize("weight", [2.0, np.float32([3.0, 1.0, 0.0, -1.0, 1.5])])
def test_guided_samples_are_those_of_the_host(
    guided: Bundle, open_loop_on: OpenLoop, weight: Any, interval: tuple[float, float] | None
) -> None:
    settings: dict[str, Any] = {"condition": {"labels": LABELS}, "solver": "unipc", "steps": 6, "seed": 3}
    settings |= {"guidance": weight, "guidance_interval": interval}
    made = open_loop_on(guided)
    with resident(guided, made) as sampler, Sampler.load(guided, threads=1) as host:
        np.testing.assert_allclose(sampler.sample(5, **settings), host.sample(5, **settings), rtol=0, atol=2 * ATOL)
        device: Any = made.device
        assert device.launched


def test_a_model_that_can_be_guided_draws_without_guidance_and_without_labels_too(
    guided: Bundle, open_loop_on: OpenLoop
) -> None:
    with resident(guided, open_loop_on(guided)) as sampler, Sampler.load(guided, threads=1) as host:
        for condition in ({"labels": LABELS[:3]}, None):
            got, expected = (one.sample(3, condition=condition, steps=5) for one in (sampler, host))
            np.testing.assert_allclose(got, expected, rtol=0, atol=ATOL)


def test_a_second_request_allocates_and_captures_nothing(stepped: Bundle, open_loop_on: OpenLoop) -> None:
    made = open_loop_on(stepped)
    device: Any = made.device
    with resident(stepped, made) as sampler:
        first = sampler.sample(3, steps=5, seed=1, condition={"labels": 0})
        before = len(device.memories), device.captured
        other = sampler.sample(4, steps=5, solver="ddim", seed=2, condition={"labels": 1})
        again = sampler.sample(3, steps=5, seed=1, condition={"labels": 0})
        assert (len(device.memories), device.captured) == before
    np.testing.assert_array_equal(first, again)
    assert np.abs(other[:3] - first).max() > 0.1


def test_a_sample_does_not_depend_on_its_neighbours_in_a_bucket(stepped: Bundle, open_loop_on: OpenLoop) -> None:
    with resident(stepped, open_loop_on(stepped, (4,))) as sampler:
        alone = sampler.sample(1, steps=4, start=2, condition={"labels": 1})
        among = sampler.sample(4, steps=4, condition={"labels": np.array([0, 2, 1, 0])})
    np.testing.assert_array_equal(alone[0], among[2])


def test_output_that_is_not_finite_is_named_by_row_and_sample(stepped: Bundle, open_loop_on: OpenLoop) -> None:
    x_T = np.zeros((3, 3, 8, 8), np.float32)
    x_T[1] = np.nan
    with resident(stepped, open_loop_on(stepped, (2,))) as sampler:
        with pytest.raises(NonFiniteError, match=r"row 0 .* not finite for samples \[1\]"):
            sampler.sample(x_T=x_T, steps=3, condition={"labels": 0})
        assert np.isfinite(sampler.sample(3, steps=3, condition={"labels": 0})).all()


def test_a_batch_that_does_not_fit_is_drawn_in_smaller_ones(
    stepped: Bundle, by_host: Sampler, open_loop_on: OpenLoop, caplog: pytest.LogCaptureFixture
) -> None:
    small = open_loop_on(stepped, (2,))
    with resident(stepped, small) as sampler:
        sampler.sample(2, steps=4, condition={"labels": 0})
        device: Any = small.device
        room = device.used_bytes
    made = open_loop_on(stepped, (1, 2, 64), room + 1000)
    with resident(stepped, made) as sampler, caplog.at_level(logging.WARNING):
        got, expected = both(sampler, by_host, 5, steps=4, batch_size=64)
        assert made.buckets == (1, 2)
    np.testing.assert_allclose(got, expected, rtol=0, atol=ATOL)
    assert "out of memory at batch 64; 2 at a time from now on" in caplog.text


def test_without_room_for_one_sample_there_is_an_error_and_nothing_is_kept(
    stepped: Bundle, open_loop_on: OpenLoop
) -> None:
    made = open_loop_on(stepped, (1, 2), 1000)
    device: Any = made.device
    with resident(stepped, made) as sampler, pytest.raises(BackendError, match="not even a batch of 1 fits"):
        sampler.sample(2, steps=4, condition={"labels": 0})
    assert device.used_bytes == 0


def test_threads_take_turns(stepped: Bundle, open_loop_on: OpenLoop) -> None:
    with resident(stepped, open_loop_on(stepped)) as sampler, ThreadPoolExecutor(4) as pool:

        def draw(seed: int) -> np.ndarray:
            return sampler.sample(2, steps=4, seed=seed, condition={"labels": 0})

        expected = [draw(seed) for seed in range(6)]
        for got, alone in zip(pool.map(draw, range(6)), expected, strict=True):
            np.testing.assert_array_equal(got, alone)


def test_noise_of_the_caller_and_streams_are_driven_by_the_host(stepped: Bundle, open_loop_on: OpenLoop) -> None:
    made = open_loop_on(stepped)
    device: Any = made.device
    with resident(stepped, made) as sampler:
        noise = np.zeros((5, 1, 3, 8, 8), np.float32)
        sampler.sample(1, solver="ddpm", steps=5, noise=noise, condition={"labels": 0})
        assert len(list(sampler.stream(1, steps=5, condition={"labels": 0}))) == 5
        assert device.launched == []
        sampler.sample(1, steps=5, condition={"labels": 0})
        assert device.launched


def test_progress_counts_rows(stepped: Bundle, open_loop_on: OpenLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    bar = MagicMock()
    monkeypatch.setattr("ddpm_deploy.sampler._progress_bar", lambda job, batch_size: bar)
    with resident(stepped, open_loop_on(stepped)) as sampler:
        sampler.sample(3, steps=5, batch_size=2, progress=True, condition={"labels": 0})
    assert [call.args for call in bar.__enter__.return_value.update.call_args_list] == [(5,), (5,)]


def test_closing_the_sampler_frees_everything(stepped: Bundle, open_loop_on: OpenLoop) -> None:
    made = open_loop_on(stepped)
    device: Any = made.device
    with resident(stepped, made) as sampler:
        sampler.sample(3, steps=4, condition={"labels": 0})
        assert device.used_bytes > 0
    assert device.used_bytes == 0
    assert device.closed


def refused(device: Any) -> Any:
    raise BackendUnavailable("the runtime is missing; install it")


@pytest.mark.parametrize("buckets", [(), (0,), ("1",), 8, (5000,)])
def test_buckets_that_are_no_batch_sizes_are_refused(buckets: Any) -> None:
    with pytest.raises(ValueError, match="options: buckets"):
        open_loop("torch", 0, refused, {"buckets": buckets})


def test_without_a_device_the_reason_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found, about = open_loop("torch", 0, refused, {})
    assert found is None
    assert about.startswith("driven by the host: cuda")
    assert "torch: the loop is driven by the host: cuda" in caplog.text


def test_a_loop_that_is_not_wanted_is_not_opened() -> None:
    assert open_loop("torch", 0, refused, {"loop": False}) == (None, "driven by the host, as asked for")


def test_auto_draws_with_the_loop_of_the_backend_that_serves_the_batch(
    stepped: Bundle, by_host: Sampler, open_loop_on: OpenLoop
) -> None:
    made = open_loop_on(stepped)
    device: Any = made.device
    small, large = (Sampler.load(stepped, threads=1).backend for _ in range(2))
    large.loop = made  # type: ignore[attr-defined]
    with Sampler(AutoBackend({1: small, 4: large}), by_host.manifest) as sampler:
        sampler.sample(1, steps=4, condition={"labels": 0})
        assert device.launched == []
        got, expected = both(sampler, by_host, 3, steps=4)
        assert device.launched
    np.testing.assert_allclose(got, expected, rtol=0, atol=ATOL)
