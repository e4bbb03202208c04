"""Open-loop load: arrivals, what is late, the search for a rate, and the contenders."""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pytest_benchmark")
sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))

from numpy_network import numpy_sampler
from numpy_service import serving

from benchmarks.serving.contenders import InFlight, check_pictures, due_first, oldest_first, one_by_one
from benchmarks.serving.goodput import search, steps_between
from benchmarks.serving.load import MIX, Kind, Trace, Trial, flood, in_closed_loop, offer
from benchmarks.serving.processes import PATH, ask_in_process
from ddpm_deploy.errors import QueueFull

ALONE_S = (0.001, 0.001, 0.001)


class Steady:
    """Answers after a fixed time, as many at once as come."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def submit(self, kind: Kind, seed: int) -> Future:
        future: Future = Future()
        threading.Timer(self.seconds, lambda: future.set_running_or_notify_cancel() and future.set_result(seed)).start()
        return future


def trial_of(rate: float, slowdowns: list[float]) -> Trial:
    return Trial(rate, np.array(slowdowns), np.ones(len(slowdowns)), np.zeros(len(slowdowns), int), 1.0)


def test_a_trace_has_the_rate_and_the_mix_that_it_says() -> None:
    trace = Trace.drawn(300, seed=1)
    assert trace.at[-1] == pytest.approx(300)
    assert np.all(np.diff(trace.at) > 0)
    assert np.bincount(trace.kinds).tolist() == [100, 100, 100]
    gaps = np.diff(trace.at)
    assert np.std(gaps) == pytest.approx(np.mean(gaps), rel=0.2), "a Poisson process"


def test_latency_counts_from_the_intended_arrival_where_the_generator_is_held_up() -> None:
    """A submit that blocks is no excuse for the requests behind it."""

    def submit(kind: Kind, seed: int) -> Future:
        time.sleep(0.02)
        future: Future = Future()
        future.set_result(seed)
        return future

    found = offer(submit, Trace(np.arange(10) * 0.001, np.zeros(10, int)), 1.0, (1.0, 1.0, 1.0))
    assert found.latency_s[-1] >= 10 * 0.02 - 0.01


def test_a_steady_contender_holds_what_is_within_the_limit_only() -> None:
    trace = Trace.drawn(60, seed=2)
    alone_s = (0.05, 0.05, 0.05)
    assert offer(Steady(0.01).submit, trace, 500, alone_s).holds
    lost = offer(Steady(0.8).submit, trace, 500, alone_s)
    assert not lost.holds
    assert lost.lost


def test_a_lost_trial_ends_early() -> None:
    begin = time.perf_counter()
    found = offer(Steady(0.05).submit, Trace.drawn(600, seed=3), 100, ALONE_S)
    assert found.lost
    assert time.perf_counter() - begin < 5, "all six seconds of it were offered"


def test_one_late_request_of_a_hundred_holds_and_two_do_not() -> None:
    assert trial_of(1, [1.0] * 99 + [11.0]).holds
    assert not trial_of(1, [1.0] * 98 + [11.0] * 2).holds
    assert not trial_of(1, [1.0] * 98 + [np.inf] * 2).holds


@pytest.mark.parametrize("start", [1.0, 30.0, 500.0])
@pytest.mark.parametrize("limit", [0.1, 3.0, 47.0, 117.0, 1000.0])
def test_the_search_finds_the_highest_rate_that_holds(start: float, limit: float) -> None:
    among = steps_between(100, 1.1)
    found = search(lambda rate: trial_of(rate, [1.0 if rate <= limit else 20.0]), among, start)
    assert found.rate == max((rate for rate in among if rate <= limit), default=0.0)
    assert len(found.trials) <= 14
    assert len({trial.rate for trial in found.trials}) == len(found.trials), "a rate was tried twice"


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_closed_loop_keeps_so_many_under_way(at_once: int) -> None:
    found = in_closed_loop(Steady(0.05).submit, at_once, 15)
    assert 0.4 * at_once / 0.05 < found < 1.1 * at_once / 0.05


def test_every_contender_draws_the_pictures_of_the_sampler_alone() -> None:
    sampler = numpy_sampler()
    for make in (
        lambda: InFlight([sampler]),
        lambda: oldest_first([sampler], 8),
        lambda: due_first([sampler], 8, ALONE_S),
        lambda: one_by_one(sampler),
    ):
        with closing(make()) as contender:
            check_pictures(sampler, contender)


def test_a_batcher_draws_all_that_waits_of_one_plan_and_one_by_one_does_not() -> None:
    for make, expected in ((lambda s: oldest_first([s], 8), 3), (one_by_one, 1)):
        sampler = numpy_sampler()
        sampler.backend.gate.shut()
        with closing(make(sampler)) as contender:
            first = contender.submit(MIX[0], 0)
            sampler.backend.gate.await_call()
            others = [contender.submit(kind, seed) for seed in range(3) for kind in MIX[:2]]
            sampler.backend.gate.open()
            for answer in (first, *others):
                answer.result(20)
        assert max(len(call) for call in sampler.backend.calls) == expected


def test_the_plan_that_is_due_first_is_drawn_first() -> None:
    sampler = numpy_sampler()
    sampler.backend.gate.shut()
    order: list[int] = []
    with closing(due_first([sampler], 8, (0.01, 1.0, 10.0))) as contender:
        answers = [contender.submit(MIX[0], 0)]
        sampler.backend.gate.await_call()
        for kind in (2, 1, 0):
            answers.append(contender.submit(MIX[kind], kind))
            answers[-1].add_done_callback(lambda answer, kind=kind: order.append(kind))
        sampler.backend.gate.open()
        for answer in answers:
            answer.result(20)
    assert order == [0, 1, 2]


def test_a_flood_is_refused_at_once_and_what_is_accepted_is_answered() -> None:
    sampler = numpy_sampler()
    with closing(InFlight([sampler], capacity=2)) as contender:
        found = flood(contender.submit, QueueFull, Trace.drawn(2000, seed=5), 20_000, (1.0, 1.0, 1.0))
    assert found.in_time + len(found.refused_s) == 2000
    assert found.in_time > 0
    assert len(found.refused_s) > 0
    assert found.late == 0


@pytest.mark.timeout(60)
def test_the_generator_of_its_own_process_asks_a_service_in_time_and_reads_its_answers() -> None:
    with serving(numpy_sampler(shape=(1, 4, 4))) as (client, _, _):
        asked = {
            "url": f"http://127.0.0.1:{client.port}{PATH}",
            "at": [0.0, 0.05, 0.05, 0.3],
            "bodies": ['{"steps": 4}', '{"steps": 0}', '{"solver": "ddim", "steps": 50}', '{"steps": 4}'],
            "allowed_s": [10.0] * 4,
            "stop_after": None,
        }
        found = ask_in_process(asked)
    assert found["status"] == [200, 400, 200, 200]
    assert all(end >= due for end, due in zip(found["done"], asked["at"], strict=True))


@pytest.mark.timeout(60)
def test_the_generator_gives_up_where_too_many_are_late() -> None:
    with serving(numpy_sampler(shape=(1, 4, 4))) as (client, engine, _):
        engine.samplers[0].backend.gate.shut()
        asked = {
            "url": f"http://127.0.0.1:{client.port}{PATH}",
            "at": [0.0] * 3,
            "bodies": ['{"steps": 4}'] * 3,
            "allowed_s": [0.2] * 3,
            "stop_after": 1,
        }
        begin = time.monotonic()
        found = ask_in_process(asked)
        engine.samplers[0].backend.gate.open()
    assert found["done"] == [None] * 3
    assert time.monotonic() - begin < 10
