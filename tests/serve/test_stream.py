"""A request as server-sent events: previews and pictures as they come, errors in the stream, cancelled when left."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the HTTP service needs it")
pytest.importorskip("uvicorn", reason="the HTTP service needs it")

from numpy_network import PATIENCE_S, numpy_sampler
from numpy_service import Client, picture, serving

from ddpm_deploy.images import to_pil
from ddpm_deploy.serve import stream as stream_module
from ddpm_deploy.serve.limits import Limits

QUEUED, PARTIAL, COMPLETED = "image_generation.queued", "image_generation.partial_image", "image_generation.completed"


@pytest.fixture
def held():
    """A service whose calls wait until the test lets them through; for four pictures."""
    sampler = numpy_sampler(shape=(1, 4, 4))
    with serving(sampler, capacity=4, limits=Limits(deadline_s=30)) as (client, engine, _):
        sampler.backend.gate.shut()
        try:
            yield sampler, client, engine
        finally:
            sampler.backend.gate.open()


@pytest.fixture(scope="module")
def grey():
    sampler = numpy_sampler(shape=(1, 4, 4))
    with serving(sampler, limits=Limits(max_n=4, max_steps=50)) as (client, *_):
        yield sampler, client


def all_events(client: Client, **fields: Any) -> list[dict[str, Any]]:
    with client.stream(**fields) as events:
        return list(events)


def without(kind: str, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["type"] != kind]


def until(condition) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_slow_network_shows_every_preview_and_then_the_picture(held) -> None:
    sampler, client, _ = held
    gate = sampler.backend.gate
    with client.stream(seed=3, steps=4, solver="unipc", preview_every=1) as events:
        seen = [next(events)]
        for _ in range(3):
            gate.let(1)
            seen.append(next(events))
        gate.open()
        seen += events
    assert [event["type"] for event in seen] == [QUEUED, PARTIAL, PARTIAL, PARTIAL, COMPLETED]
    frames = list(sampler.stream(1, seed=3, steps=4, solver="unipc"))
    for number, (event, frame) in enumerate(zip(seen[1:4], frames[:3], strict=True)):
        place = {"index": 0, "partial_image_index": number, "step": number + 1, "steps": 4, "t": frame.t}
        assert place.items() <= event.items()
        assert (event["size"], event["output_format"]) == ("4x4", "png")
        np.testing.assert_array_equal(picture(event), np.asarray(to_pil(frame.x0)[0]))
    expected = to_pil(sampler.sample(1, seed=3, steps=4, solver="unipc"))[0]
    np.testing.assert_array_equal(picture(seen[4]), np.asarray(expected))
    facts = {"model": "numpy", "size": "4x4", "output_format": "png", "seed": 3, "solver": "unipc", "steps": 4}
    assert facts.items() <= seen[4].items()
    assert facts.items() <= seen[0].items()
    assert seen[4]["step"] == 4


def test_the_stream_and_the_plain_answer_have_the_same_pictures(grey) -> None:
    _, client = grey
    streamed = [event for event in all_events(client, n=3, seed=8, steps=5) if event["type"] == COMPLETED]
    plain = client.post(n=3, seed=8, steps=5)
    assert sorted(event["index"] for event in streamed) == [0, 1, 2]
    for event in streamed:
        np.testing.assert_array_equal(picture(event), plain.pixels[event["index"]])


@pytest.mark.parametrize(
    ("steps", "partial_images", "shown"), [(12, 3, [3, 6, 9]), (10, 1, [5]), (2, 3, [1]), (5, 0, []), (1, 2, [])]
)
def test_partial_images_is_how_many_at_most(held, steps: int, partial_images: int, shown: list[int]) -> None:
    sampler, client, _ = held
    gate = sampler.backend.gate
    with client.stream(steps=steps, partial_images=partial_images) as events:
        assert next(events)["type"] == QUEUED
        found = []
        for step in shown:
            gate.let(step - (found[-1] if found else 0))
            event = next(events)
            assert event["type"] == PARTIAL
            found.append(event["step"])
        gate.open()
        assert [event["type"] for event in events] == [COMPLETED]
    assert found == shown


def test_a_request_in_the_queue_is_told_how_many_are_ahead(held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "HEARTBEAT_S", 0.02)
    sampler, client, _ = held
    with client.stream(steps=5, n=3) as first:
        sampler.backend.gate.await_call()  # or the second would join the first's batch
        with client.stream(steps=50) as second:
            told = [next(second) for _ in range(3)]
            assert [event["type"] for event in told] == [QUEUED] * 3
            assert all(event["wait_s"] >= 0 for event in told)
            assert [event["ahead"] for event in told] == [3] * 3
            sampler.backend.gate.open()
            assert [event["type"] for event in without(QUEUED, list(first))] == [COMPLETED] * 3
            assert [event["type"] for event in without(QUEUED, list(second))] == [COMPLETED]


def test_a_picture_that_takes_long_has_heartbeats(held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "HEARTBEAT_S", 0.02)
    sampler, client, _ = held
    connection = client.connect()
    try:
        body = '{"stream": true, "steps": 3}'
        connection.request("POST", "/v1/images/generations", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.readline().startswith(b"event: image_generation.queued")
        sampler.backend.gate.let(1)
        lines = iter(response.readline, b"")
        assert next(line for line in lines if line.startswith(b":")) == b": under way\n"
        sampler.backend.gate.open()
        assert any(line.startswith(b"event: image_generation.completed") for line in lines)
    finally:
        connection.close()


def test_leaving_the_stream_cancels_the_request(held) -> None:
    sampler, client, engine = held
    with client.stream(steps=50, n=3) as events:
        assert next(events)["type"] == QUEUED
        assert engine.held == 3
    until(lambda: engine.held == 0)
    sampler.backend.gate.open()
    assert all_events(client, steps=3)[-1]["type"] == COMPLETED


def test_a_picture_that_fails_is_an_error_event_and_the_others_come(held) -> None:
    sampler, client, _ = held

    def fault(feeds: Any, m: np.ndarray) -> None:
        m[1:2] = np.nan

    sampler.backend.fault = fault
    with client.stream(n=3, steps=1) as events:
        sampler.backend.gate.open()
        seen = without(QUEUED, list(events))
    assert sorted(event["index"] for event in seen[:2]) == [0, 2]
    assert [event["type"] for event in seen] == [COMPLETED, COMPLETED, "error"]
    assert seen[2]["index"] == 1
    assert seen[2]["error"] == {
        "message": "the service failed to draw this; see its log",
        "type": "server_error",
        "param": None,
        "code": 500,
    }


def test_a_deadline_in_mid_stream_is_an_error_event(held) -> None:
    sampler, client, _ = held
    with client.stream(steps=50, deadline_s=0.05) as events:
        sampler.backend.gate.await_call()
        time.sleep(0.06)
        sampler.backend.gate.open()
        seen = without(QUEUED, list(events))
    assert [event["type"] for event in seen] == ["error"]
    assert seen[0]["error"]["code"] == 504


def test_a_close_in_mid_stream_is_an_error_event(held) -> None:
    sampler, client, engine = held
    with client.stream(steps=50) as events:
        assert next(events)["type"] == QUEUED
        sampler.backend.gate.open()
        engine.close()
        assert without(QUEUED, list(events))[-1]["error"]["code"] == 503


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stream": True, "partial_images": 2, "preview_every": 1}, "preview_every: given together"),
        ({"partial_images": 2}, "partial_images: got 2, but stream is false"),
        ({"preview_every": 2}, "preview_every: got 2, but stream is false"),
        ({"stream": True, "partial_images": -1}, "partial_images: "),
        ({"stream": True, "preview_every": 0}, "preview_every: "),
        ({"stream": True, "response_format": "npy"}, "stream: given together with response_format npy"),
        ({"output_format": "jpeg", "response_format": "npy"}, "output_format: given together"),
        ({"stream": True, "n": 99}, "n: got 99"),
        ({"stream": "yes"}, "stream: "),
        ({"output_format": "webp"}, "output_format: "),
    ],
)
def test_what_cannot_be_streamed_is_refused_before_it_begins(grey, fields: dict[str, Any], message: str) -> None:
    _, client = grey
    answer = client.post(**fields)
    assert answer.status == 400
    assert answer.message.startswith(message)
