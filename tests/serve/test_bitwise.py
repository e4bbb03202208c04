"""Whoever shares the batch, a sample of the engine is bitwise that of the sampler alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy_network import numpy_sampler, prompted_sampler

from ddpm_deploy import Sampler
from ddpm_deploy.serve import Engine
from ddpm_deploy.solvers import SOLVERS

MIXED = [
    {"solver": "unipc", "steps": 12, "seed": 1},
    {"solver": "ddpm", "steps": 20, "seed": 2, "n": 2},
    {"solver": "ddim", "steps": 4, "seed": 3},
    {"solver": "dpmpp_2m_sde", "steps": 9, "seed": 4, "start": 5},
    {"solver": "heun", "steps": 5, "seed": 5},
    {"solver": "unipc", "steps": 7, "seed": 6, "n": 3},
    {"solver": "deis", "steps": 6, "seed": 7},
    {"solver": "ddim", "steps": 11, "seed": 8, "eta": 0.5},
]

GUIDED = [  # what the digits model knows
    {"condition": {"labels": 7}, "guidance": 3.0, "steps": 6, "seed": 9},
    {"condition": {"labels": [1, 2, 3]}, "guidance": [1.0, 0.0, 2.5], "n": 3, "steps": 9, "solver": "ddpm"},
    {"condition": {"labels": 2}, "guidance": 4, "guidance_interval": (200, 600), "steps": 8, "seed": 3},
]


def assert_as_alone(sampler: Sampler, requests: list[dict[str, Any]], **options: Any) -> None:
    """Draw all in one engine at once, then each alone."""
    with Engine(sampler, **options) as engine:
        handles = [engine.submit(**request) for request in requests]
        found = [handle.result(60) for handle in handles]
    for request, samples in zip(requests, found, strict=True):
        np.testing.assert_array_equal(samples, sampler.sample(**{"n": 1, **request}), err_msg=str(request))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_sample_is_bitwise_that_of_the_sampler_alone(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(backend)
    with Sampler.load(backend=backend, threads=1) as sampler:
        assert sampler.backend.batch_invariant
        sizes, run = [], sampler.backend.run
        monkeypatch.setattr(sampler.backend, "run", lambda feeds: sizes.append(len(feeds["t"])) or run(feeds))
        assert_as_alone(sampler, [*MIXED, *GUIDED])
        assert max(sizes) >= 6, "hardly a call was shared"


def test_every_solver_shares_its_calls_with_every_other_and_keeps_its_bits(sampler: Sampler) -> None:
    requests = [{"solver": solver, "steps": 5 + i % 3, "seed": i} for i, solver in enumerate(SOLVERS)]
    sampler.backend.gate.shut()
    with Engine(sampler, buckets=range(1, 33)) as engine:
        first = engine.submit(steps=1)
        sampler.backend.gate.await_call()
        handles = [engine.submit(**request) for request in requests]
        sampler.backend.gate.open()
        found = [handle.result(20) for handle in (first, *handles)]
        calls = len(sampler.backend.calls)
    assert calls == 1 + max(sampler.plan(r["solver"], r["steps"]).nfe for r in requests)
    for request, samples in zip(requests, found[1:], strict=True):
        np.testing.assert_array_equal(samples, sampler.sample(1, **request), err_msg=str(request))


def test_learned_variance_is_scaled_for_each_sample_as_alone() -> None:
    sampler = numpy_sampler(variance="learned")
    requests = [{"solver": "ddpm", "steps": s, "seed": s, "n": 2} for s in (4, 7, 11)]
    assert_as_alone(sampler, [*requests, {"solver": "unipc", "steps": 6}, {"solver": "ddpm", "steps": 3}])


def test_guided_and_unguided_samples_share_calls_and_keep_their_bits(guided: Sampler) -> None:
    requests = [
        {"condition": {"labels": 1}, "guidance": 3.0, "steps": 6, "seed": 1},
        {"condition": {"labels": [0, 1, 2]}, "guidance": [1.0, 0.0, 2.5], "n": 3, "steps": 9, "solver": "ddpm"},
        {"condition": {"labels": 2}, "steps": 7, "solver": "unipc"},
        {"condition": {"labels": 0}, "guidance": 0.0, "steps": 4},
        {"steps": 5, "seed": 9},
        {"condition": {"labels": 2}, "guidance": 4, "guidance_interval": (20, 60), "steps": 8, "seed": 3},
    ]
    assert_as_alone(guided, requests)
    assert_as_alone(guided, requests, buckets=(1,))


@pytest.mark.parametrize("buckets", [(1,), (3,), (1, 4), (8,)])
def test_the_buckets_change_nothing_but_the_sizes_of_the_calls(sampler: Sampler, buckets: tuple[int, ...]) -> None:
    assert_as_alone(sampler, MIXED, buckets=buckets)
    sampler.backend.calls.clear()
    with Engine(sampler, buckets=buckets) as engine:
        for handle in [engine.submit(**request) for request in MIXED]:
            handle.result(20)
    assert {len(call) for call in sampler.backend.calls} <= set(buckets)


def test_pictures_of_several_sizes_are_drawn_side_by_side() -> None:
    sampler = numpy_sampler(size_multiple=4)
    sizes = [None, (8, 4), (4, 4), (8, 8), (8, 4)]
    assert_as_alone(sampler, [{"size": size, "steps": 3 + i, "seed": i} for i, size in enumerate(sizes)])


def test_prompts_are_encoded_for_each_request() -> None:
    requests = [{"prompt": "blue cat", "guidance": 2.0, "steps": 5}, {"prompt": ["dog", "big dog"], "n": 2, "steps": 4}]
    assert_as_alone(prompted_sampler(), [*requests, {"steps": 6}])


def test_a_sample_that_pauses_for_others_keeps_its_bits(sampler: Sampler) -> None:
    sampler.backend.gate.shut()
    with Engine(sampler, buckets=(2,)) as engine:
        long = [engine.submit(2, solver="unipc", steps=20, seed=seed) for seed in range(2)]
        sampler.backend.gate.let(5)
        short = [engine.submit(solver="ddpm", steps=2 + seed, seed=seed) for seed in range(5)]
        sampler.backend.gate.open()
        found = [handle.result(20) for handle in long], [handle.result(20) for handle in short]
    for seed, samples in enumerate(found[0]):
        np.testing.assert_array_equal(samples, sampler.sample(2, solver="unipc", steps=20, seed=seed))
    for seed, samples in enumerate(found[1]):
        np.testing.assert_array_equal(samples, sampler.sample(1, solver="ddpm", steps=2 + seed, seed=seed))


def test_with_one_bucket_torch_draws_the_same_bits_alone_and_in_company() -> None:
    pytest.importorskip("torch")
    requests = [{"solver": "unipc", "steps": 4}, {"solver": "ddim", "steps": 3, "n": 3}, {"solver": "ddpm", "steps": 3}]
    with Sampler.load(backend="torch") as sampler, Engine(sampler, buckets=(8,)) as engine:
        assert not sampler.backend.batch_invariant
        alone = [engine.submit(**request).result(60) for request in requests]
        together = [handle.result(60) for handle in [engine.submit(**request) for request in requests]]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
