"""Forms by batch size: compiled once, bounded, and cut into pieces past the bound without a change of any bit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ddpm_deploy.backends import per_batch
from ddpm_deploy.backends.per_batch import PerBatch, affordable

Feeds = dict[str, np.ndarray]


class Doubler:
    """Takes its own batch size only."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def infer(self, feeds: Feeds) -> Feeds:
        assert {len(array) for array in feeds.values()} == {self.batch}
        return {"y": feeds["x"] * 2 + feeds["t"][:, None]}


@pytest.fixture
def compiled() -> list[int]:
    """The batch sizes that were compiled, in order."""
    return []


@pytest.fixture
def make(compiled: list[int]) -> Callable[[int], PerBatch]:
    def compile_one(batch: int) -> Doubler:
        compiled.append(batch)
        return Doubler(batch)

    return lambda most: PerBatch(Doubler(1), compile_one, most)


def run(forms: PerBatch, batch: int) -> None:
    feeds = {"x": np.arange(batch * 2.0).reshape(batch, 2), "t": np.arange(float(batch)) ** 2}
    np.testing.assert_array_equal(forms.infer(feeds)["y"], feeds["x"] * 2 + feeds["t"][:, None])


def test_each_size_is_compiled_when_it_is_first_seen_and_never_again(make: Callable, compiled: list[int]) -> None:
    forms = make(4)
    for batch in (1, 5, 5, 3, 1, 5, 3):
        run(forms, batch)
    assert compiled == [5, 3]
    assert forms.sizes == [1, 3, 5]


def test_sizes_past_the_bound_go_in_pieces_in_their_order(make: Callable, compiled: list[int]) -> None:
    forms = make(3)
    for batch in (4, 7, 2, 3, 19, 40):
        run(forms, batch)
    assert compiled == [4, 7]


def test_sizes_past_the_bound_find_pieces_of_some_size_whatever_came_before(
    make: Callable, compiled: list[int]
) -> None:
    """As where a batcher drains: 32, 31, 30, ... must not leave only pieces of 1 for 24."""
    forms = make(8)
    for batch in range(32, 20, -1):
        run(forms, batch)
    assert compiled == [32, 31, 30, 29, 4, 16]
    assert len(forms.sizes) <= 8
    for batch in (24, 100, 7, 64):
        run(forms, batch)
    assert compiled == [32, 31, 30, 29, 4, 16, 64]


def test_a_form_that_was_not_called_for_long_gives_its_place(
    make: Callable, compiled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(per_batch, "IDLE_CALLS", 5)
    forms = make(3)
    for batch in (4, 7, 6, 6, 7, 6):
        run(forms, batch)
    assert compiled == [4, 7]
    run(forms, 6)
    assert compiled == [4, 7, 6]
    assert forms.sizes == [1, 6, 7]


def test_batch_one_stays_however_long_it_was_not_called(make: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(per_batch, "IDLE_CALLS", 0)
    forms = make(2)
    for batch in (2, 3, 4, 5):
        run(forms, batch)
    assert 1 in forms.sizes
    assert len(forms.sizes) == 2


def test_many_threads_compile_a_size_once_and_known_sizes_do_not_wait() -> None:
    compiled, entered, release = [], threading.Event(), threading.Event()

    def compile_one(batch: int) -> Doubler:
        compiled.append(batch)
        entered.set()
        assert release.wait(30)
        return Doubler(batch)

    forms = PerBatch(Doubler(1), compile_one, 4)
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(run, forms, 6) for _ in range(3)]
        assert entered.wait(30)
        pool.submit(run, forms, 1).result(timeout=30)
        time.sleep(0.02)
        release.set()
        for future in waiting:
            future.result(timeout=30)
    assert compiled == [6]


def test_a_size_that_cannot_be_compiled_leaves_the_others_working() -> None:
    def compile_one(batch: int) -> Doubler:
        raise MemoryError(f"batch {batch}")

    forms = PerBatch(Doubler(1), compile_one, 4)
    for _ in range(2):
        with pytest.raises(MemoryError, match="batch 3"):
            run(forms, 3)
    run(forms, 1)


@pytest.mark.parametrize(("weights_bytes", "most"), [(0, 8), (2_800_000, 8), (2**28, 4), (2**29 + 1, 1), (2**31, 1)])
def test_the_forms_together_hold_a_gibibyte_of_weights_at_most(weights_bytes: int, most: int) -> None:
    assert affordable(weights_bytes) == most
