"""What the service writes down: metrics, request ids, log lines and traces."""

from __future__ import annotations

import io
import json
import logging
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the HTTP service needs it")
pytest.importorskip("uvicorn", reason="the HTTP service needs it")

from numpy_network import PATIENCE_S, numpy_sampler
from numpy_service import Client, serving
from prometheus_client.parser import text_string_to_metric_families

from ddpm_deploy.errors import BackendUnavailable
from ddpm_deploy.serve import Engine, Step
from ddpm_deploy.serve.limits import Limits
from ddpm_deploy.serve.logs import JsonFormatter, TextFormatter
from ddpm_deploy.serve.tracing import Tracing

REQUESTS = "ddpm_deploy.serve.requests"


@pytest.fixture
def service():
    sampler = numpy_sampler(shape=(1, 4, 4), labelled=True)
    with serving(sampler, capacity=4, limits=Limits(max_n=4)) as (client, engine, _):
        yield sampler, client, engine


def metrics(client: Client) -> dict[str, float]:
    """Each sample by its name and its one label."""
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    found = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        for sample in family.samples:
            label = "".join(value for name, value in sample.labels.items())
            found[sample.name.removeprefix("ddpm_deploy_") + (f" {label}" if label else "")] = sample.value
    return found


def until(condition) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


# -- metrics --------------------------------------------------------------------------------------------------------


def test_metrics_count_what_was_drawn_and_evaluated(service) -> None:
    _, client, _ = service
    assert client.post(n=3, steps=5).status == 200
    assert client.post(n=1, steps=4, label="a", guidance=2.0).status == 200
    found = metrics(client)
    assert found["pictures_total"] == 4
    assert found["answers_total 200"] == 2
    assert found["network_evaluations_total"] == 3 * 5 + 2 * 4
    assert found["network_calls_total"] == found["step_seconds_count"] == 9
    assert found["batch_samples_sum"] == 3 * 5 + 4
    assert found["picture_seconds_count"] == found["queue_seconds_count"] == 2
    assert found["capacity_samples"] == 4
    assert found["held_samples"] == found["queued_samples"] == 0
    assert found["ready"] == 1
    assert found["process_open_fds"] > 0


def test_metrics_name_the_reasons_of_refusals(service) -> None:
    sampler, client, engine = service
    assert client.post(n=0).status == 400
    assert client.post(b" " * 70000).status == 413
    assert client.post(b"", headers={"Content-Type": "text/plain"}).status == 415
    sampler.backend.gate.shut()
    with client.stream(n=4, steps=50) as events:
        next(events)
        until(lambda: metrics(client)["held_samples"] == 4)
        assert client.post().status == 429
    until(lambda: engine.held == 0)
    sampler.backend.gate.open()
    found = metrics(client)
    reasons = {name: value for name, value in found.items() if name.startswith("rejected_requests_total")}
    kinds = ("invalid", "too_large", "not_json", "full")
    assert reasons == {f"rejected_requests_total {kind}": 1 for kind in kinds}
    assert found["cancelled_requests_total"] == 1
    assert found["answers_total 429"] == 1


def test_what_was_accepted_and_fails_in_a_drain_is_no_refusal(service) -> None:
    sampler, client, engine = service
    before = metrics(client)
    sampler.backend.gate.shut()
    with ThreadPoolExecutor(1) as pool:
        lost = pool.submit(client.post, steps=50)
        until(lambda: engine.held == 1)
        engine.close(0)
        assert lost.result(PATIENCE_S).status == 503
    sampler.backend.gate.open()
    found = metrics(client)
    assert found["answers_total 503"] == before.get("answers_total 503", 0) + 1
    assert found.get("rejected_requests_total not_ready", 0) == before.get("rejected_requests_total not_ready", 0)


def test_padding_is_the_share_of_a_bucket_that_nobody_asked_for() -> None:
    steps: list[Step] = []
    with Engine(numpy_sampler(), buckets=(4,)) as engine:
        engine.observe(steps.append)
        engine.submit(3, steps=2).result(PATIENCE_S)
    assert [(step.samples, step.tally.calls, step.tally.lanes, step.tally.places) for step in steps] == [
        (3, 1, 3, 4)
    ] * 2
    assert all(step.seconds > 0 and step.failed == 0 for step in steps)


def test_an_observer_that_fails_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with Engine(numpy_sampler()) as engine:
        engine.observe(lambda step: 1 // 0)
        assert engine.submit(2, steps=3).result(PATIENCE_S).shape[0] == 2
    assert "an observer failed" in caplog.text


def test_failed_pictures_are_counted_by_what_they_failed_with(service) -> None:
    sampler, client, _ = service
    sampler.backend.gate.shut()
    with client.stream(steps=90, deadline_s=0.02) as events:
        sampler.backend.gate.await_call()
        time.sleep(0.03)
        sampler.backend.gate.open()
        assert list(events)[-1]["type"] == "error"
    assert metrics(client)["failed_pictures_total DeadlineExceeded"] == 1


# -- request ids and the log ----------------------------------------------------------------------------------------


def test_a_sane_request_id_comes_back_and_others_are_replaced(service) -> None:
    _, client, _ = service
    for sane in ("abc-123", "4bf92f3577b34da6a3ce929d0e0e4736", "a/b:c=1@x"):
        assert client.post(steps=1, headers={"X-Request-Id": sane}).headers["x-request-id"] == sane
    made = [
        client.post(steps=1, headers={"X-Request-Id": bad}).headers["x-request-id"]
        for bad in ("", "a b", "é", "x" * 200)
    ]
    made.append(client.get("/healthz").headers["x-request-id"])
    made.append(client.get("/none").headers["x-request-id"])
    assert all(len(each) == 32 for each in made)
    assert len(set(made)) == len(made)


def test_each_request_is_a_line_of_json(service, caplog: pytest.LogCaptureFixture) -> None:
    _, client, _ = service
    caplog.set_level(logging.INFO, REQUESTS)
    client.post(n=2, steps=3, seed=5, headers={"X-Request-Id": "mine"})
    client.post(n=99)
    client.get("/healthz")
    until(lambda: len(caplog.records) >= 2)
    drawn, refused = (json.loads(JsonFormatter().format(record)) for record in caplog.records)
    expected = {"level": "info", "message": "request", "method": "POST", "path": "/v1/images/generations"}
    assert (expected | {"status": 200, "n": 2, "solver": "ddim", "steps": 3, "seed": 5}).items() <= drawn.items()
    assert drawn["seconds"] >= drawn["queue_s"] >= 0
    assert (expected | {"status": 400}).items() <= refused.items()


def test_a_failure_is_logged_with_the_id_of_its_request(service) -> None:
    sampler, client, _ = service
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("ddpm_deploy")
    logger.addHandler(handler)
    try:

        def fault(feeds: Any, m: Any) -> None:
            m[:] = float("nan")

        sampler.backend.fault = fault
        assert client.post(steps=2, headers={"X-Request-Id": "unlucky"}).status == 500
    finally:
        logger.removeHandler(handler)
    (line,) = (json.loads(line) for line in written.getvalue().splitlines() if "not finite" in line)
    assert (line["level"], line["request_id"]) == ("error", "unlucky")


def test_a_defect_of_ours_is_a_status_500_with_an_id_and_a_traceback_in_the_log(
    service, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, client, _ = service
    monkeypatch.setattr("ddpm_deploy.serve.app.response", lambda *_: 1 // 0)
    answer = client.post(steps=1, headers={"X-Request-Id": "mine"})
    assert (answer.status, answer.headers["x-request-id"]) == (500, "mine")
    assert answer.message == "the service failed to draw this; see its log"
    assert "ZeroDivisionError" in caplog.text


def test_text_cannot_be_made_to_look_like_another_line() -> None:
    record = logging.LogRecord("x", logging.INFO, "f", 1, "a\n2026 ERROR: forged", None, None)
    record.fields = {"path": "/\x1b[31m\r\n status=200", "status": 404}
    shown = TextFormatter().format(record)
    assert shown.endswith('status=200" status=404')
    assert "\n" not in shown
    assert "\x1b" not in shown
    assert "forged" in shown


# -- traces ---------------------------------------------------------------------------------------------------------


def test_a_trace_has_the_request_its_wait_and_its_drawing() -> None:
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter").InMemorySpanExporter()
    tracing = Tracing(memory)
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with serving(numpy_sampler(shape=(1, 4, 4)), tracing=tracing) as (client, *_):
        assert client.post(steps=3, seed=2**60, headers={"traceparent": parent, "X-Request-Id": "mine"}).status == 200
        assert client.post(n=0).status == 400
        client.get("/healthz")
        until(lambda: client.get("/metrics").status == 200)
    tracing.close()
    spans = memory.get_finished_spans()
    assert [span.name for span in spans] == [
        "queue",
        "draw",
        "POST /v1/images/generations",
        "POST /v1/images/generations",
    ]
    queue, draw, request, refused = spans
    assert f"{request.context.trace_id:032x}" == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert queue.parent.span_id == draw.parent.span_id == request.context.span_id
    assert request.start_time <= queue.start_time <= queue.end_time <= draw.end_time <= request.end_time
    expected = {"http.response.status_code": 200, "ddpm_deploy.request_id": "mine", "ddpm_deploy.seed": str(2**60)}
    assert expected.items() <= request.attributes.items()
    assert refused.attributes["http.response.status_code"] == 400
    assert request.resource.attributes["service.name"] == "ddpm-deploy"


def test_tracing_without_its_packages_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(BackendUnavailable, match=r"otel: .*; pip install 'ddpm-deploy\[otel\]'"):
        Tracing()
