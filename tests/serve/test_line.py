"""Which worker may take which sample."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from ddpm_deploy.serve.line import PATIENCE, Line


@pytest.fixture
def numbers() -> Iterator[int]:
    return count()


def added(line: Line, numbers: Iterator[int], n: int) -> list[Any]:
    handle: Any = object()
    found: list[Any] = [
        SimpleNamespace(number=number, order=(0.0, number), stack=None, handle=handle)
        for number in (next(numbers) for _ in range(n))
    ]
    line.add(found, handle, None)
    return found


def taken(line: Line, worker: int) -> list[int]:
    """A worker begins with all that it may have; their numbers."""
    samples = list(line.candidates(worker))
    line.take(worker, samples)
    for sample in samples:
        sample.stack = []
    return [sample.number for sample in samples]


def test_workers_have_as_many_samples_as_each_other(numbers: Iterator[int]) -> None:
    line = Line(2)
    added(line, numbers, 5)
    assert taken(line, 0) == [0, 1, 2]
    assert taken(line, 1) == [3, 4]
    added(line, numbers, 1)
    assert taken(line, 0) == [0, 1, 2], "the other one has fewer"
    assert taken(line, 1) == [3, 4, 5]
    added(line, numbers, 1)
    assert taken(line, 0) == [0, 1, 2, 6], "who comes first, where it makes no difference"


def test_who_finishes_first_goes_on_first(numbers: Iterator[int]) -> None:
    line = Line(2)
    samples = added(line, numbers, 4)
    taken(line, 0), taken(line, 1)
    line.remove(samples[2:])
    added(line, numbers, 2)
    assert taken(line, 0) == [0, 1]
    assert taken(line, 1) == [4, 5]


def test_what_nobody_comes_for_is_taken_by_who_has_more(numbers: Iterator[int]) -> None:
    line = Line(2)
    samples = added(line, numbers, 2)
    taken(line, 0), taken(line, 1)
    line.remove(samples[:1])  # by its deadline; the first worker hangs in its call
    added(line, numbers, 1)
    for _ in range(PATIENCE):
        assert taken(line, 1) == [1]
    assert taken(line, 1) == [1, 2]


def test_who_is_left_takes_all(numbers: Iterator[int]) -> None:
    line = Line(2)
    added(line, numbers, 4)
    taken(line, 0), taken(line, 1)
    added(line, numbers, 3)
    assert [sample.number for sample in line.left_by(1)] == [2, 3]
    assert taken(line, 0) == [0, 1, 4, 5, 6]
