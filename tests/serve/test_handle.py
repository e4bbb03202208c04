"""What a caller holds of a request: a future, and a stream of previews."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from numpy_network import PATIENCE_S, SHAPE

from ddpm_deploy import Sampler
from ddpm_deploy.errors import EngineClosed
from ddpm_deploy.serve import Engine, Handle, Preview


def preview(index: int, step: int) -> Preview:
    return Preview(index, step, 9, 0.0, np.zeros(SHAPE, np.float32))


def test_a_handle_can_be_awaited(sampler: Sampler) -> None:
    async def many() -> list[np.ndarray]:
        return await asyncio.gather(*(engine.submit(2, steps=4, seed=seed) for seed in range(5)))

    with Engine(sampler) as engine:
        found = asyncio.run(many())
    for seed, samples in enumerate(found):
        np.testing.assert_array_equal(samples, sampler.sample(2, steps=4, seed=seed))


def test_previews_are_the_frames_of_the_sampler(sampler: Sampler) -> None:
    sampler.backend.gate.shut()

    async def follow() -> list[Preview]:
        seen = []
        async for each in handle:
            seen.append(each)
            sampler.backend.gate.let(1) if each.step < 4 else sampler.backend.gate.open()
        return seen

    with Engine(sampler) as engine:
        handle = engine.submit(solver="unipc", steps=6, seed=3, preview_every=1)
        sampler.backend.gate.let(1)
        seen = asyncio.run(follow())
    frames = list(sampler.stream(1, solver="unipc", steps=6, seed=3))
    assert [(each.step, each.steps, each.t) for each in seen] == [(f.step, 6, f.t) for f in frames]
    for each, frame in zip(seen, frames, strict=True):
        np.testing.assert_array_equal(each.x0, frame.x0[0])


def test_previews_come_every_so_many_steps_and_at_the_last(sampler: Sampler) -> None:
    handle = Handle(1, SHAPE, preview_every=3)
    assert [row for row in range(8) if handle.wants_preview(row, 8)] == [2, 5, 7]
    assert not any(Handle(1, SHAPE).wants_preview(row, 8) for row in range(8))


def test_a_slow_consumer_gets_the_newest_preview_of_each_sample() -> None:
    async def late() -> list[tuple[int, int]]:
        return [(each.index, each.step) async for each in handle]

    handle = Handle(2, SHAPE, preview_every=1)
    for step in range(5):
        handle.show(preview(0, step))
        handle.show(preview(1, step))
    handle.abort(EngineClosed("over"))
    assert asyncio.run(late()) == [(0, 4), (1, 4)]


def test_the_stream_of_a_failed_or_cancelled_request_ends() -> None:
    async def follow(handle: Handle) -> list[Preview]:
        return [each async for each in handle]

    for end in (lambda handle: handle.abort(EngineClosed("over")), lambda handle: handle.cancel()):
        handle = Handle(1, SHAPE, preview_every=1)
        threading.Timer(0.02, end, [handle]).start()
        assert asyncio.run(asyncio.wait_for(follow(handle), PATIENCE_S)) == []


def test_a_preview_after_the_loop_is_closed_disturbs_nobody() -> None:
    async def leave() -> None:
        async for _ in handle:
            break

    handle = Handle(1, SHAPE, preview_every=1)
    handle.show(preview(0, 0))
    asyncio.run(leave())
    handle.show(preview(0, 1))
    handle.settle(0, np.ones(SHAPE, np.float32))
    np.testing.assert_array_equal(handle.result(0), np.ones((1, *SHAPE)))


def test_a_cancelled_task_takes_its_request_along(sampler: Sampler) -> None:
    sampler.backend.gate.shut()

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(handle, 0.02)

    with Engine(sampler) as engine:
        handle = engine.submit(4, steps=50)
        asyncio.run(give_up())
        assert handle.cancelled()
        assert engine.held == 0
        sampler.backend.gate.open()


def test_waiting_for_a_result_has_a_limit_and_cancels_nothing(sampler: Sampler) -> None:
    sampler.backend.gate.shut()
    with Engine(sampler) as engine:
        handle = engine.submit(steps=2)
        with pytest.raises(TimeoutError):
            handle.result(0.01)
        assert not handle.done()
        sampler.backend.gate.open()
        assert handle.result(PATIENCE_S).shape == (1, *SHAPE)


def test_a_result_belongs_to_the_caller(sampler: Sampler) -> None:
    with Engine(sampler) as engine:
        first = engine.submit(solver="heun", steps=3).result(PATIENCE_S)
        first[:] = 7
        second = engine.submit(solver="heun", steps=3).result(PATIENCE_S)
    np.testing.assert_array_equal(second, sampler.sample(1, solver="heun", steps=3))
