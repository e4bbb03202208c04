"""Clients that others wrote get their pictures from the running service: curl, and OpenAI's own."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the HTTP service needs it")
pytest.importorskip("uvicorn", reason="the HTTP service needs it")

from numpy_network import numpy_sampler
from numpy_service import PATH, serving
from PIL import Image

from ddpm_deploy.images import to_pil

TOKEN = "s3cret"


@pytest.fixture(scope="module")
def service():
    sampler = numpy_sampler(labelled=True, shape=(1, 4, 4))
    with serving(sampler, token=TOKEN) as (client, *_):
        yield sampler, f"http://127.0.0.1:{client.port}"


@pytest.fixture
def openai_client(service):
    openai = pytest.importorskip("openai", reason="the official client is not installed")
    _, url = service
    with openai.OpenAI(base_url=f"{url}/v1", api_key=TOKEN, max_retries=0) as client:
        yield client


def expected(sampler, **arguments) -> np.ndarray:
    label = {"labels": np.array([arguments.pop("label")])}
    return np.asarray(to_pil(sampler.sample(1, condition=label, **arguments))[0])


def decoded(b64_json: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64_json))))


def curl(url: str, body: dict, *options: str) -> bytes:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = ["curl", "-sS", "--max-time", "20", url + PATH, "-H", "Content-Type: application/json"]
    command += ["-H", f"Authorization: Bearer {TOKEN}", "-d", json.dumps(body), *options]
    return subprocess.run(command, check=True, capture_output=True).stdout


def test_curl_gets_a_picture(service) -> None:
    sampler, url = service
    answer = json.loads(curl(url, {"prompt": "b", "seed": 3, "steps": 4}))
    np.testing.assert_array_equal(decoded(answer["data"][0]["b64_json"]), expected(sampler, label=1, seed=3, steps=4))


def test_curl_gets_a_stream_and_a_file_of_numpy(service) -> None:
    sampler, url = service
    lines = curl(url, {"label": "b", "seed": 3, "steps": 4, "stream": True}, "-N").decode().splitlines()
    last = json.loads(lines[lines.index("event: image_generation.completed") + 1].removeprefix("data: "))
    np.testing.assert_array_equal(decoded(last["b64_json"]), expected(sampler, label=1, seed=3, steps=4))
    samples = np.load(io.BytesIO(curl(url, {"label": "b", "seed": 3, "steps": 4, "response_format": "npy"})))
    np.testing.assert_array_equal(samples, sampler.sample(1, seed=3, steps=4, condition={"labels": np.array([1])}))


def test_openais_client_gets_a_picture(service, openai_client) -> None:
    sampler, _ = service
    answer = openai_client.images.generate(
        model="numpy", prompt="c", n=1, size="4x4", response_format="b64_json", extra_body={"seed": 5, "steps": 6}
    )
    np.testing.assert_array_equal(decoded(answer.data[0].b64_json), expected(sampler, label=2, seed=5, steps=6))
    assert (answer.size, answer.output_format) == ("4x4", "png")
    assert answer.created > 1.7e9


def test_openais_client_follows_a_stream(service, openai_client) -> None:
    sampler, _ = service
    sampler.backend.gate.shut()
    stream = openai_client.images.generate(
        prompt="c", stream=True, partial_images=2, extra_body={"seed": 5, "steps": 6, "solver": "heun"}
    )
    events = [next(stream)]
    for _ in range(2):
        sampler.backend.gate.let(4)
        events.append(next(stream))
    sampler.backend.gate.open()
    events += stream
    kinds = [event.type.removeprefix("image_generation.") for event in events]
    assert kinds == ["queued", "partial_image", "partial_image", "completed"]
    assert [event.partial_image_index for event in events[1:3]] == [0, 1]
    assert [type(event).__name__ for event in events[1:]] == [
        *["ImageGenPartialImageEvent"] * 2,
        "ImageGenCompletedEvent",
    ]
    np.testing.assert_array_equal(
        decoded(events[3].b64_json), expected(sampler, label=2, seed=5, steps=6, solver="heun")
    )


def test_openais_client_raises_what_it_raises_for_openai(service, openai_client) -> None:
    import openai

    _, url = service
    with pytest.raises(openai.BadRequestError, match="label: got 'dog'"):
        openai_client.images.generate(prompt="dog")
    with pytest.raises(openai.AuthenticationError, match="bearer token"):
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong").images.generate(prompt="a")
    with pytest.raises(openai.APIError, match="not finished by its deadline"):
        list(openai_client.images.generate(prompt="a", stream=True, extra_body={"steps": 100, "deadline_s": 1e-9}))


def test_openais_client_lists_the_model(openai_client) -> None:
    (model,) = openai_client.models.list().data
    assert model.id == "numpy"
    assert model.classes == ["a", "b", "c"]
