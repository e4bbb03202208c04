"""Several backends behind one: which gets a call, what is said of them, and who closes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddpm_deploy.backends import open_backend
from ddpm_deploy.backends.auto import AutoBackend
from ddpm_deploy.bundle import TensorSpec, read_bundle
from ddpm_deploy.errors import BackendError
from ddpm_deploy.sampler import Sampler


class Fake:
    """Writes down the batch sizes that it gets."""

    device = "cpu"
    inputs = (TensorSpec("x", ("B", 2), "float32"),)
    outputs = (TensorSpec("y", ("B", 2), "float32"),)
    details: dict[str, Any] = {"version": "7"}  # noqa: RUF012

    def __init__(self, name: str, precision: str = "fp32", threads: int = 1, batch_invariant: bool = True) -> None:
        self.name, self.precision, self.threads, self.batch_invariant = name, precision, threads, batch_invariant
        self.calls: list[int] = []
        self.closed = 0

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.calls.append(len(feeds["x"]))
        return {"y": feeds["x"]}

    def close(self) -> None:
        self.closed += 1


def x(batch: int) -> dict[str, np.ndarray]:
    return {"x": np.zeros((batch, 2), np.float32)}


def test_a_call_goes_to_the_least_bucket_that_holds_it_and_large_ones_to_the_largest() -> None:
    small, middle, large = Fake("a"), Fake("b"), Fake("c")
    auto = AutoBackend({8: large, 1: small, 4: middle})
    for batch in (1, 2, 3, 4, 5, 8, 9, 100):
        assert auto.run(x(batch))["y"].shape == (batch, 2)
    assert (small.calls, middle.calls, large.calls) == ([1], [2, 3, 4], [5, 8, 9, 100])


def test_a_backend_of_several_buckets_is_closed_once() -> None:
    one, other = Fake("a"), Fake("b")
    with AutoBackend({1: one, 2: other, 4: one}) as auto:
        assert auto.backends == [one, other]
    assert (one.closed, other.closed) == (1, 1)


def test_it_is_batch_invariant_only_where_one_invariant_backend_serves_all() -> None:
    one, other, varying = Fake("a"), Fake("b"), Fake("c", batch_invariant=False)
    assert AutoBackend({1: one, 8: one}).batch_invariant
    assert not AutoBackend({1: one, 8: other}).batch_invariant
    assert not AutoBackend({1: varying}).batch_invariant


def test_it_says_what_it_consists_of() -> None:
    auto = AutoBackend({1: Fake("a"), 8: Fake("b", "int8", threads=4)}, {"choices": {1: "a", 8: "b"}})
    assert (auto.name, auto.device, auto.precision, auto.threads) == ("auto", "cpu", "fp32, int8", 4)
    assert auto.details["choices"] == {1: "a", 8: "b"}
    assert [(b["name"], b["threads"], b["version"]) for b in auto.details["backends"]] == [("a", 1, "7"), ("b", 4, "7")]


def test_none_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="choices: got none"):
        AutoBackend({})


@pytest.fixture
def mixed(tiny_bundle: Path) -> AutoBackend:
    bundle = read_bundle(tiny_bundle)
    return AutoBackend({size: open_backend("onnxruntime", bundle, threads=size) for size in (1, 2)})


def test_a_sampler_on_it_draws_the_samples_of_the_backend_below(mixed: AutoBackend, tiny_bundle: Path) -> None:
    with Sampler(mixed, read_bundle(tiny_bundle).manifest) as auto, Sampler.load(tiny_bundle, threads=1) as plain:
        for n in (1, 5):
            np.testing.assert_array_equal(auto.sample(n, steps=3), plain.sample(n, steps=3))
    with pytest.raises(BackendError, match="is closed; open it again"):
        auto.sample(1, steps=3)


@pytest.mark.parametrize("feeds", [{}, {"x": 3}, {"x": np.float32(3)}, {"y": np.zeros((2, 3, 8, 8), np.float32)}])
def test_feeds_that_fit_no_graph_are_refused_by_the_backend(mixed: AutoBackend, feeds: dict[str, Any]) -> None:
    with mixed, pytest.raises(BackendError, match="onnxruntime: feeds: received"):
        mixed.run(feeds)
