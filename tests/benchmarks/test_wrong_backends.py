"""A backend that is wrong is found out before anything is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.harness import Bench, Times, Trial
from benchmarks.specs import Options, Spec
from ddpm_deploy.bench.measure import Contender
from ddpm_deploy.bench.record import Parity, Row
from ddpm_deploy.bench.truth import feeds_for
from ddpm_deploy.errors import ParityError

Feeds = Mapping[str, np.ndarray]
Wrong = Callable[[Callable[[Feeds], np.ndarray], Feeds], np.ndarray]

RIGHT = Spec("step", "one evaluation", "onnxruntime", "fp32", 2)
BROKEN = Spec("step", "one evaluation", "broken", "fp32", 2)


def one_step_late(evaluate: Callable[[Feeds], np.ndarray], feeds: Feeds) -> np.ndarray:
    return evaluate({**feeds, "t": feeds["t"] + 1})


def channels_swapped(evaluate: Callable[[Feeds], np.ndarray], feeds: Feeds) -> np.ndarray:
    return evaluate({**feeds, "x": np.ascontiguousarray(feeds["x"][:, ::-1])})


def half_overflows(evaluate: Callable[[Feeds], np.ndarray], feeds: Feeds) -> np.ndarray:
    """What fp16 makes of an activation of 70,000 on the way, brought back to its scale afterwards."""
    prediction = evaluate(feeds)
    with np.errstate(over="ignore"):
        return ((prediction * (7e4 / np.abs(prediction).max())).astype(np.float16)).astype(np.float32)


def another_sample(evaluate: Callable[[Feeds], np.ndarray], feeds: Feeds) -> np.ndarray:
    return np.roll(evaluate(feeds), 1, axis=0) if len(feeds["x"]) > 1 else evaluate(feeds) * 1.001


def unchanged(evaluate: Callable[[Feeds], np.ndarray], feeds: Feeds) -> np.ndarray:
    return evaluate(feeds)


@pytest.fixture
def bench(tiny_bundle: Path) -> Iterator[Bench]:
    session = Bench(Options(model=str(tiny_bundle), threads=1, batches=(2,)), say=lambda text: None)
    with session:
        yield session


def measure(bench: Bench, wrong: Wrong, precision: str = "fp32") -> tuple[dict[Spec, Row | Exception], list[str]]:
    """A group of a right and a broken contender, and the names of those that came to be timed."""
    backend = bench.sampler("onnxruntime", "fp32").backend
    feeds = feeds_for(bench.model.bundle.manifest, 2)
    timed: list[str] = []

    def evaluate(feeds: Feeds) -> np.ndarray:
        return backend.run(feeds)["prediction"]

    def build(spec: Spec, bench: Bench) -> Trial:
        def candidate(feeds: Feeds) -> np.ndarray:
            return wrong(evaluate, feeds) if spec.contender == "broken" else evaluate(feeds)

        def judge() -> Parity:
            return bench.truth.judge(candidate, 2, precision if spec.contender == "broken" else "fp32")

        return Trial(lambda: candidate(feeds), judge)

    def time_it(contenders: list[Contender], again: Any) -> dict[str, Times]:
        timed.extend(contender.name for contender in contenders)
        return {contender.name: Times([contender.seconds() for _ in range(3)]) for contender in contenders}

    return bench.measure({RIGHT: "right", BROKEN: "broken"}, build, time_it), timed


@pytest.mark.parametrize("wrong", [one_step_late, channels_swapped, half_overflows, another_sample])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_wrong_backend_is_refused_before_it_is_timed(bench: Bench, wrong: Wrong, precision: str) -> None:
    outcomes, timed = measure(bench, wrong, precision)
    assert isinstance(outcomes[BROKEN], ParityError)
    assert "not the same model" in str(outcomes[BROKEN])
    assert timed == ["onnxruntime fp32", "onnxruntime fp32 (twin)"]
    assert [row.contender for row in bench.rows] == timed


def test_right_backend_under_the_same_test_is_timed(bench: Bench) -> None:
    outcomes, timed = measure(bench, unchanged)
    assert isinstance(outcomes[BROKEN], Row)
    assert "broken fp32" in timed


def test_nan_is_refused_though_a_clip_would_hide_it(bench: Bench) -> None:
    outcomes, timed = measure(bench, lambda evaluate, feeds: evaluate(feeds) * np.float32("nan"))
    assert isinstance(outcomes[BROKEN], ParityError)
    assert "broken fp32" not in timed
