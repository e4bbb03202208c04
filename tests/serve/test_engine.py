"""The engine takes requests in, lets short ones pass long ones, starves none, and ends in good order."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from typing import Any

import numpy as np
import pytest
from numpy_network import PATIENCE_S, SHAPE, numpy_sampler

from ddpm_deploy import Sampler
from ddpm_deploy.errors import BackendError, DeadlineExceeded, EngineClosed, QueueFull
from ddpm_deploy.serve import Engine
from ddpm_deploy.serve.handle import Handle


@pytest.fixture
def held(sampler: Sampler):
    """A sampler whose calls wait until the test lets them through; none waits for ever."""
    sampler.backend.gate.shut()
    yield sampler
    sampler.backend.gate.open()


def steps_until_done(sampler: Sampler, handle: Handle, most: int = 200) -> int:
    """Let calls through one by one until a request is done; how many."""
    for count in range(most):
        if handle.done():
            return count
        sampler.backend.gate.let(1)
    raise AssertionError(f"not done after {most} calls")


# -- who goes first -------------------------------------------------------------------------------------------------


def test_requests_that_come_together_share_every_call(held: Sampler) -> None:
    with Engine(held, buckets=range(1, 9)) as engine:
        engine.submit(steps=1)
        held.backend.gate.await_call()
        handles = [engine.submit(solver="ddim", steps=steps) for steps in (3, 5, 9)]
        held.backend.gate.open()
        for handle in handles:
            handle.result(PATIENCE_S)
    assert [len(call) for call in held.backend.calls] == [1, 3, 3, 3, 2, 2, 1, 1, 1, 1]


def test_a_short_request_takes_part_in_the_next_call_however_many_long_ones_wait(held: Sampler) -> None:
    with Engine(held, buckets=(4,)) as engine:
        long = engine.submit(40, solver="ddim", steps=100)
        held.backend.gate.let(3)
        short = engine.submit(solver="ddim", steps=4)
        assert steps_until_done(held, short) == 4 + 1  # one was on its way
        assert not long.done()
        held.backend.gate.open()
        assert long.result(PATIENCE_S).shape == (40, *SHAPE)


def test_a_long_request_is_not_starved_by_short_ones_without_end(held: Sampler) -> None:
    with Engine(held, buckets=(1,)) as engine:
        long = engine.submit(solver="ddim", steps=20)
        calls = 0
        while not long.done():
            engine.submit(solver="ddim", steps=1)
            held.backend.gate.let(1)
            calls += 1
            assert calls < 8 * 20 + 20 + 20, "starved beyond its allowance"
        held.backend.gate.open()
    assert calls > 8 * 20 - 8, "the short ones did not pass it"


def test_among_equals_the_first_to_come_is_the_first_to_go(held: Sampler) -> None:
    with Engine(held, buckets=(1,)) as engine:
        handles = [engine.submit(solver="ddim", steps=3, seed=seed) for seed in range(3)]
        finished: list[Handle] = []
        for handle in handles:
            handle.add_done_callback(finished.append)
        held.backend.gate.open()
    assert finished == handles


def test_priority_goes_first(held: Sampler) -> None:
    with Engine(held, buckets=(1,)) as engine:
        usual = engine.submit(solver="ddim", steps=10)
        urgent = engine.submit(solver="ddim", steps=10, priority=2)
        idle = engine.submit(solver="ddim", steps=9, priority=-2)
        assert steps_until_done(held, urgent) <= 11
        assert not usual.done()
        assert steps_until_done(held, usual) <= 12
        assert not idle.done()
        held.backend.gate.open()


# -- room -----------------------------------------------------------------------------------------------------------


def test_a_full_engine_refuses_and_says_when_to_come_again(held: Sampler) -> None:
    with Engine(held, capacity=3) as engine:
        engine.submit(2)
        with pytest.raises(QueueFull, match="holds 2 samples, with 2 more than its capacity of 3") as refused:
            engine.submit(2)
        assert 0 < refused.value.retry_after_s <= 60
        assert engine.held == 2
        engine.submit(1)
        held.backend.gate.open()


def test_nothing_is_computed_for_what_is_refused(held: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine(held, capacity=1) as engine:
        engine.submit(steps=2)
        monkeypatch.setattr(held, "job", lambda *_: pytest.fail("the request was worked on"))
        with pytest.raises(QueueFull):
            engine.submit(steps=2)
        held.backend.gate.open()


def test_an_idle_engine_holds_no_samples(sampler: Sampler) -> None:
    with Engine(sampler) as engine:
        handle = engine.submit(3, solver="unipc", steps=4)
        handle.result(PATIENCE_S)
        kept = weakref.ref(handle)
        del handle
        until = time.monotonic() + PATIENCE_S
        while kept() is not None and time.monotonic() < until:
            gc.collect()
        assert kept() is None


def test_a_caller_may_wait_for_room(held: Sampler) -> None:
    with Engine(held, capacity=1) as engine:
        engine.submit(steps=2)
        with pytest.raises(QueueFull):
            engine.submit(steps=2, wait_s=0.02)
        threading.Timer(0.05, held.backend.gate.open).start()
        assert engine.submit(steps=2, wait_s=PATIENCE_S).result(PATIENCE_S).shape == (1, *SHAPE)


def test_more_than_the_engine_ever_holds_is_a_mistake(sampler: Sampler) -> None:
    with Engine(sampler, capacity=4) as engine, pytest.raises(ValueError, match="n: got 5, expected at most 4"):
        engine.submit(5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n: got 0"),
        ({"n": True}, "n: got True"),
        ({"solver": "none"}, "solver: got 'none'"),
        ({"steps": 0}, "steps"),
        ({"seed": -1}, "seed: got -1"),
        ({"seed": 2**64}, "seed: got"),
        ({"seed": 1.5}, "seed: got 1.5"),
        ({"n": 2, "start": 2**64 - 1}, "start: got"),
        ({"priority": 9}, "priority: got 9"),
        ({"priority": 0.5}, "priority: got 0.5"),
        ({"deadline_s": 0}, "deadline_s: got 0"),
        ({"deadline_s": float("nan")}, "deadline_s: got nan"),
        ({"wait_s": float("inf")}, "wait_s: got inf"),
        ({"wait_s": -1}, "wait_s: got -1"),
        ({"preview_every": -1}, "preview_every: got -1"),
        ({"guidance": 2.0}, "guidance: got a weight"),
        ({"condition": {"labels": 1}}, "condition: got labels, expected none"),
        ({"size": (8, 8)}, "size: got 8x8"),
        ({"eta_": 1}, "eta_"),
    ],
)
def test_a_bad_argument_is_refused_before_anything_is_held(sampler: Sampler, arguments: Any, message: str) -> None:
    with Engine(sampler) as engine, pytest.raises(ValueError, match=message):
        engine.submit(**arguments)
    assert engine.held == 0
    assert sampler.backend.calls == []


def test_a_plan_that_the_network_cannot_serve_is_refused(sampler: Sampler) -> None:
    plan = numpy_sampler(variance="learned").plan("ddpm", 4)
    with Engine(sampler) as engine, pytest.raises(ValueError, match="with a learned variance"):
        engine.submit(plan=plan)


@pytest.mark.parametrize("options", [{"capacity": 0}, {"capacity": 1.5}, {"buckets": ()}, {"buckets": (0, 2)}])
def test_an_engine_of_nothing_is_refused(sampler: Sampler, options: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Engine(sampler, **options)


def test_an_engine_serves_one_model(sampler: Sampler, guided: Sampler) -> None:
    with pytest.raises(ValueError, match="several kinds of conditions"):
        Engine([sampler, guided])
    with pytest.raises(ValueError, match="samplers: got none"):
        Engine([])


# -- giving up ------------------------------------------------------------------------------------------------------


def test_a_cancelled_request_leaves_at_the_next_step_and_changes_nobody(held: Sampler) -> None:
    with Engine(held, buckets=range(1, 9)) as engine:
        doomed, other = engine.submit(3, solver="ddim", steps=50), engine.submit(solver="ddpm", steps=6, seed=4)
        held.backend.gate.let(2)
        assert doomed.cancel()
        assert engine.held == 1
        held.backend.gate.let(2)
        assert [len(call) for call in held.backend.calls][-1] == 1
        held.backend.gate.open()
        found = other.result(PATIENCE_S)
    assert doomed.cancelled()
    assert not doomed.cancel()
    np.testing.assert_array_equal(found, held.sample(1, solver="ddpm", steps=6, seed=4))


def test_a_request_past_its_deadline_fails_and_leaves_its_place(held: Sampler) -> None:
    with Engine(held) as engine:
        late, other = engine.submit(2, steps=50, deadline_s=0.01), engine.submit(steps=50)
        in_time = engine.submit(steps=3, deadline_s=100)
        held.backend.gate.await_call()
        time.sleep(0.02)
        held.backend.gate.let(1)
        with pytest.raises(DeadlineExceeded, match="not finished by its deadline"):
            late.result(PATIENCE_S)
        assert engine.held == 2
        held.backend.gate.open()
        assert other.result(PATIENCE_S).shape == in_time.result(PATIENCE_S).shape == (1, *SHAPE)


def test_a_thousand_requests_from_many_threads_half_of_them_cancelled_leave_no_trace(sampler: Sampler) -> None:
    alone = [sampler.sample(1, solver="ddpm", steps=4 + seed % 3, seed=seed) for seed in range(20)]
    wrong: list[int] = []

    def client(number: int) -> None:
        for i in range(number, 1000, 4):
            seed = i % 20
            handle = engine.submit(solver="ddpm", steps=4 + seed % 3, seed=seed, wait_s=PATIENCE_S)
            if i % 8 < 4:
                handle.cancel()
            elif not np.array_equal(handle.result(PATIENCE_S), alone[seed]):
                wrong.append(i)

    with Engine(sampler, capacity=50) as engine:
        clients = [threading.Thread(target=client, args=(number,)) for number in range(4)]
        for each in clients:
            each.start()
        for each in clients:
            each.join()
        assert engine.drain(PATIENCE_S)
        assert engine.held == 0
    assert wrong == []


# -- the end --------------------------------------------------------------------------------------------------------


def test_a_drain_finishes_what_was_accepted_and_takes_nothing_more(held: Sampler) -> None:
    engine = Engine(held)
    handle = engine.submit(2, steps=5)
    assert engine.accepting
    assert not engine.drain(0.01)
    assert not engine.accepting
    with pytest.raises(EngineClosed, match="takes no more requests"):
        engine.submit()
    held.backend.gate.open()
    assert engine.drain(PATIENCE_S)
    assert handle.done()
    engine.close()


def test_close_fails_what_is_not_finished_and_ends_the_threads(held: Sampler) -> None:
    engine = Engine(held)
    handles = [engine.submit(steps=50) for _ in range(3)]
    held.backend.gate.await_call()
    closer = threading.Thread(target=engine.close)
    closer.start()
    for handle in handles:
        with pytest.raises(EngineClosed, match="closed before the request was finished"):
            handle.result(PATIENCE_S)
    held.backend.gate.open()
    closer.join(PATIENCE_S)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("engine-")]
    assert len(held.backend.calls) == 1
    engine.close()


def test_leaving_the_block_finishes_and_an_error_in_it_does_not(held: Sampler) -> None:
    threading.Timer(0.05, held.backend.gate.open).start()
    with Engine(held) as engine:
        finished = engine.submit(steps=5)
    assert finished.result(0).shape == (1, *SHAPE)
    with pytest.raises(KeyError), Engine(held) as engine:  # noqa: PT012
        dropped = engine.submit(steps=100)
        raise KeyError
    assert dropped.done()


def test_a_caller_who_waits_for_room_is_told_of_the_end(held: Sampler) -> None:
    engine = Engine(held, capacity=1)
    engine.submit(steps=50)
    threading.Timer(0.05, engine.close).start()
    threading.Timer(0.1, held.backend.gate.open).start()
    with pytest.raises(EngineClosed):
        engine.submit(wait_s=PATIENCE_S)


def test_the_sampler_stays_open_after_the_engine_is_closed(sampler: Sampler) -> None:
    Engine(sampler).close()
    assert sampler.sample(1, steps=2).shape == (1, *SHAPE)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_refuses_at_once_instead_of_hanging(sampler: Sampler) -> None:
    with Engine(sampler) as engine:
        child = os.fork()
        if child == 0:
            try:
                engine.submit()
            except BackendError as error:
                engine.close()
                os._exit(0 if "used in its fork" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# -- several devices ------------------------------------------------------------------------------------------------


def test_two_devices_share_the_line_and_each_picture_is_drawn_by_one(sampler: Sampler) -> None:
    samplers = [sampler, numpy_sampler()]
    for each in samplers:
        each.backend.gate.shut()
    with Engine(samplers, buckets=(1,)) as engine:
        handles = [engine.submit(solver="ddim", steps=6, seed=seed) for seed in range(8)]
        for each in samplers:
            each.backend.gate.await_call()
        for each in samplers:
            each.backend.gate.open()
        for seed, handle in enumerate(handles):
            np.testing.assert_array_equal(
                handle.result(PATIENCE_S), sampler.sample(1, solver="ddim", steps=6, seed=seed)
            )
    drawn = [t for call in samplers[1].backend.calls for t in call]
    counts = {drawn.count(t) for t in sampler.plan("ddim", 6).t}
    assert len(counts) == 1, "a picture changed devices on its way"
    assert counts != {0}


def test_fewer_share_a_call_where_samples_are_larger_than_those_of_the_training() -> None:
    sampler = numpy_sampler(size_multiple=4)
    sampler.backend.gate.shut()
    with Engine(sampler, buckets=(1, 2, 4, 8)) as engine:
        handles = [engine.submit(8, steps=2, size=size) for size in ((8, 8), (4, 4))]
        sampler.backend.gate.open()
        for handle in handles:
            handle.result(PATIENCE_S)
    sizes = [len(call) for call in sampler.backend.calls]
    assert sorted(sizes, reverse=True)[:2] == [8, 8]
    assert sizes.count(2) == 8, "four times the pixels, a quarter of the batch"
