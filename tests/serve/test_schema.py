"""Requests made up from the service's own OpenAPI document never get an answer that it does not name."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="the HTTP service needs it")
pytest.importorskip("uvicorn", reason="the HTTP service needs it")
pytest.importorskip("schemathesis", reason="schemathesis is not installed")

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from numpy_network import numpy_sampler
from numpy_service import PATH, serving
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from ddpm_deploy.serve.limits import Limits

READ = ("/v1/models", "/v1/models/{name}", "/healthz", "/readyz", "/metrics")
OPERATIONS = [("POST", PATH), *(("GET", path) for path in READ)]


DEADLINE = 504
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def api():
    sampler = numpy_sampler(labelled=True, shape=(1, 4, 4), size_multiple=4)
    with serving(sampler, limits=Limits(max_n=4, max_steps=50, max_pixels=256)) as (client, *_):
        yield schemathesis.openapi.from_url(f"http://127.0.0.1:{client.port}/openapi.json")


def test_the_document_has_all_operations(api) -> None:
    found = {(each.ok().method.upper(), each.ok().path) for each in api.get_all_operations()}
    assert found == set(OPERATIONS)


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [*((method, path, "POSITIVE") for method, path in OPERATIONS), ("POST", PATH, "NEGATIVE")],
)
@pytest.mark.timeout(120)
def test_every_answer_is_one_that_the_document_names(api, method: str, path: str, mode: str) -> None:
    seen: set[int] = set()

    @settings(
        max_examples=100 if method == "POST" else 5,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=api[path][method].as_strategy(generation_mode=schemathesis.GenerationMode[mode]))
    def answers(case) -> None:
        response = case.call_and_validate(timeout=20, checks=CHECKS)
        seen.add(response.status_code)

    answers()
    fine = 404 if "{" in path else 200  # no made-up name is that of the model
    assert seen & ({fine} if mode == "POSITIVE" else {400, 415})
    assert {status for status in seen if status >= 500} <= {DEADLINE}, "a deadline may be asked for that is too short"


@pytest.mark.parametrize("body", [{"steps": 2}, {"steps": 20, "n": 3, "partial_images": 3}, {"deadline_s": 1e-6}])
def test_a_stream_has_the_events_that_the_document_names(api, body: dict) -> None:
    case = api[PATH]["POST"].Case(body={"stream": True, **body}, media_type="application/json")
    assert case.call_and_validate(timeout=20, checks=CHECKS).status_code == 200
