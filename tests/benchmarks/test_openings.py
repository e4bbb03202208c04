"""Contenders that are opened again: the same program, or nothing is timed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from benchmarks.harness import Bench
from benchmarks.openings import Openings, Trial
from benchmarks.specs import Options, Spec
from ddpm_deploy.errors import BackendUnavailable, ParityError

SPECS = [Spec("step", "one evaluation", name, "fp32", 1) for name in ("a", "b", "c")]


@dataclass
class Thing:
    name: str
    closed: list[str] = field(default_factory=list)

    def close(self) -> None:
        self.closed.append(self.name)
        if self.name == "bad":
            raise OSError("cannot close")


def trial(value: float) -> Trial:
    return Trial(call=lambda: np.full(3, value), judge=lambda: None)


def test_each_is_opened_once_for_every_opening_in_its_order() -> None:
    built: list[str] = []

    def build(spec: Spec) -> Trial:
        built.append(spec.contender)
        return trial(1.0)

    closed: list[int] = []
    openings = Openings({spec: trial(1.0) for spec in SPECS}, build, lambda: closed.append(1))
    assert [[one.name[0] for one in openings(k)] for k in range(3)][:2] == [["a", "b", "c"], ["c", "b", "a"]]
    assert (built[:3], len(built), len(closed)) == (["c", "b", "a"], 6, 2)


def test_one_that_is_another_when_it_is_opened_again_is_not_timed() -> None:
    openings = Openings({spec: trial(1.0) for spec in SPECS}, lambda spec: trial(1.001), lambda: None)
    openings(0)
    with pytest.raises(ParityError, match=r"opened again it is 0\.001"):
        openings(1)


def test_one_that_cannot_be_opened_again_fails_its_group_and_is_no_reason_to_skip() -> None:
    def build(spec: Spec) -> Trial:
        raise BackendUnavailable("no memory")

    openings = Openings({spec: trial(1.0) for spec in SPECS}, build, lambda: None)
    with pytest.raises(RuntimeError, match="was opened once, but not again: no memory"):
        openings(1)


def test_all_that_is_open_is_closed_but_what_is_kept() -> None:
    closed: list[str] = []
    bench = Bench(Options())
    with bench:
        for name in ("one", "kept"):
            bench.opened(name, lambda name=name: Thing(name, closed), keep=name == "kept")
        bench.close_all()
        assert closed == ["one"]
        assert bench.opened("kept", lambda: Thing("another", closed)).name == "kept"
    assert closed == ["one", "kept"]


def test_one_that_cannot_be_closed_keeps_no_other_open() -> None:
    closed: list[str] = []
    bench = Bench(Options())
    for name in ("one", "bad", "two"):
        bench.opened(name, lambda name=name: Thing(name, closed))
    with pytest.raises(OSError, match="cannot close"):
        bench.close_all()
    assert sorted(closed) == ["bad", "one", "two"]


def test_error_of_opening_is_the_same_for_the_whole_session() -> None:
    tried: list[int] = []

    def fails() -> Thing:
        tried.append(1)
        raise BackendUnavailable("not here")

    bench = Bench(Options())
    for _ in range(2):
        with pytest.raises(BackendUnavailable, match="not here"):
            bench.opened("missing", fails)
        bench.close_all()
    assert tried == [1]
