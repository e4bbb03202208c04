"""The service answers in OpenAI's form, refuses what it must with the right status, and loses nothing."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the HTTP service needs it")
pytest.importorskip("uvicorn", reason="the HTTP service needs it")

from numpy_network import PATIENCE_S, numpy_sampler, prompted_sampler
from numpy_service import PATH, Client, await_ready, serving

from ddpm_deploy import BackendError, Sampler
from ddpm_deploy.images import to_pil
from ddpm_deploy.serve import Engine
from ddpm_deploy.serve.__main__ import main
from ddpm_deploy.serve.app import make_app
from ddpm_deploy.serve.limits import Limits
from ddpm_deploy.serve.server import is_open, listening


@pytest.fixture(scope="module")
def grey():
    """A guided service of grey pictures; its calls are not held."""
    sampler = numpy_sampler(labelled=True, shape=(1, 4, 4))
    with serving(sampler, limits=Limits(max_n=4, max_steps=50)) as (client, *_):
        yield sampler, client


@pytest.fixture
def held():
    """A service whose calls wait until the test lets them through; for four pictures."""
    sampler = numpy_sampler(shape=(1, 4, 4))
    with serving(sampler, capacity=4, limits=Limits(deadline_s=30)) as (client, engine, server):
        sampler.backend.gate.shut()
        try:
            yield sampler, client, engine, server
        finally:
            sampler.backend.gate.open()


def in_background(client: Client, **fields: Any):
    pool = ThreadPoolExecutor(1)
    answer = pool.submit(client.post, **fields)
    pool.shutdown(wait=False)
    return answer


def until(condition) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


# -- pictures -------------------------------------------------------------------------------------------------------


def test_a_picture_is_that_of_the_sampler(grey) -> None:
    sampler, client = grey
    answer = client.post(n=2, seed=7, steps=6, solver="unipc", label="b,c", guidance=2.5)
    assert answer.status == 200
    samples = sampler.sample(2, seed=7, steps=6, solver="unipc", condition={"labels": np.array([1, 2])}, guidance=2.5)
    for found, expected in zip(answer.pixels, to_pil(samples), strict=True):
        np.testing.assert_array_equal(found, np.asarray(expected))
    rest = {name: value for name, value in answer.body.items() if name not in ("data", "created")}
    assert rest == {"model": "numpy", "size": "4x4", "output_format": "png", "seed": 7, "solver": "unipc", "steps": 6}


def test_a_prompt_is_a_label_for_clients_that_must_send_one(grey) -> None:
    _, client = grey
    by_prompt = client.post(prompt="c", seed=1, steps=3, model="numpy", size="auto", response_format="b64_json")
    by_label = client.post(label="2", seed=1, steps=3, size="4x4")
    assert by_prompt.status == by_label.status == 200
    assert by_prompt.body["data"] == by_label.body["data"]


def test_a_prompt_is_text_where_the_bundle_reads_it() -> None:
    sampler = prompted_sampler()
    with serving(sampler) as (client, *_):
        answer = client.post(prompt="blue dog", guidance=3.0, seed=4, steps=5)
        without = client.post(prompt="", seed=4, steps=5)
    expected = [sampler.sample(1, seed=4, steps=5, **given) for given in ({"prompt": "blue dog", "guidance": 3.0}, {})]
    for each, samples in zip((answer, without), expected, strict=True):
        np.testing.assert_array_equal(each.pixels[0], np.asarray(to_pil(samples)[0]))
    assert answer.body["data"] != without.body["data"]


def test_without_a_seed_the_answer_names_the_one_that_was_drawn(grey) -> None:
    _, client = grey
    first, second = client.post(steps=3), client.post(steps=3)
    assert first.body["seed"] != second.body["seed"]
    assert client.post(steps=3, seed=first.body["seed"]).body["data"] == first.body["data"]


def test_a_picture_may_have_any_size_where_the_model_leaves_it_free() -> None:
    sampler = numpy_sampler(shape=(1, 4, 4), size_multiple=4)
    with serving(sampler, limits=Limits(max_pixels=64)) as (client, *_):
        answer = client.post(size="8x4", steps=2)
        assert answer.pixels[0].shape == (4, 8)
        assert answer.body["size"] == "8x4"
        assert client.post(size="12x8", steps=2).message == "size: got 12x8, expected at most 64 pixels"
    with serving(sampler) as (client, *_):
        assert client.post(size="16x4", steps=2).status == 200
        assert client.post(size="20x4", steps=2).message == "size: got 20x4, expected at most 64 pixels"


def test_pictures_pixels_and_steps_have_a_bound_together() -> None:
    sampler = numpy_sampler(shape=(1, 4, 4), size_multiple=4)
    with serving(sampler, limits=Limits(max_work=640)) as (client, *_):
        assert client.post(n=4, steps=10).status == 200
        for fields in ({"n": 5, "steps": 10}, {"n": 4, "steps": 11}, {"n": 2, "steps": 10, "size": "12x4"}):
            answer = client.post(**fields)
            assert answer.status == 400
            assert "expected at most 640 in all" in answer.message


def test_requests_share_calls_and_each_gets_its_own_picture(held) -> None:
    sampler, client, engine, _ = held
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(client.post, seed=seed, steps=4 + seed) for seed in range(4)]
        until(lambda: engine.held == 4)
        sampler.backend.gate.open()
        found = [answer.result(PATIENCE_S) for answer in answers]
    assert max(map(len, sampler.backend.calls)) >= 3
    for seed, answer in enumerate(found):
        expected = to_pil(sampler.sample(1, seed=seed, steps=4 + seed))[0]
        np.testing.assert_array_equal(answer.pixels[0], np.asarray(expected))


def test_the_samples_themselves_come_as_a_file_of_numpy(grey) -> None:
    sampler, client = grey
    answer = client.post(n=2, steps=4, seed=5, label="a", response_format="npy")
    assert (answer.headers["content-type"], answer.headers["x-seed"]) == ("application/x-npy", "5")
    expected = sampler.sample(2, steps=4, seed=5, condition={"labels": np.zeros(2, np.int64)})
    np.testing.assert_array_equal(np.load(io.BytesIO(answer.body)), expected)


def test_a_picture_may_be_a_jpeg_where_it_has_no_transparency(grey) -> None:
    _, client = grey
    answer = client.post(steps=2, seed=1, label="a", output_format="jpeg")
    assert answer.body["output_format"] == "jpeg"
    assert base64.b64decode(answer.body["data"][0]["b64_json"]).startswith(b"\xff\xd8")
    png = client.post(steps=2, seed=1, label="a")
    assert np.abs(answer.pixels[0].astype(int) - png.pixels[0]).max() < 30
    with serving(numpy_sampler(shape=(4, 4, 4))) as (clear, *_):
        refused = clear.post(output_format="jpeg")
        assert refused.message.startswith("output_format: got 'jpeg', which has no transparency")
        assert clear.post(steps=2).pixels[0].shape == (4, 4, 4)


def test_the_model_is_described_with_what_may_be_asked_of_it(grey) -> None:
    _, client = grey
    (model,) = client.get("/v1/models").body["data"]
    expected = {
        "id": "numpy",
        "object": "model",
        "sample_shape": [1, 4, 4],
        "size": "4x4",
        "size_multiple": None,
        "classes": ["a", "b", "c"],
        "words": None,
        "guided": True,
        "timesteps": 100,
        "default": {"solver": "ddim", "steps": 10},
        "limits": {"n": 4, "steps": 50, "pixels": 4 * 16, "work": 2**30, "deadline_s": 60.0},
    }
    assert expected.items() <= model.items()
    assert client.get("/v1/models/numpy").body == model
    assert client.get("/v1/models/other").message == "model: got 'other', expected 'numpy'"
    for solver in model["solvers"]:
        assert client.post(solver=solver, steps=3).status == 200
    with serving(prompted_sampler(), token="s3cret") as (client, *_):
        assert client.get("/v1/models").status == 401


def test_the_openapi_document_names_every_field_and_status(grey) -> None:
    _, client = grey
    operation = client.get("/openapi.json").body["paths"][PATH]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert {"n", "size", "seed", "steps", "solver", "guidance", "label", "prompt"} <= schema["properties"].keys()
    assert {"200", "400", "401", "408", "413", "415", "429", "500", "503", "504"} <= operation["responses"].keys()


# -- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n": 0}, "n: "),
        ({"n": 5}, "n: got 5, expected at most 4"),
        ({"n": 10**30}, "n: "),
        ({"n": "2"}, "n: "),
        ({"n": True}, "n: "),
        ({"n": 1.5}, "n: "),
        ({"steps": 51}, "steps: got 51, expected at most 50"),
        ({"steps": 26, "solver": "heun"}, "steps: heun takes 51 evaluations"),
        ({"steps": -1}, "steps: "),
        ({"solver": "ddpm"}, "steps: ddpm takes 100 evaluations, expected at most 50"),
        ({"solver": "magic"}, "solver: got 'magic'"),
        ({"seed": -1}, "seed: "),
        ({"seed": 2**64}, "seed: "),
        ({"size": "8x8"}, "size: got 8x8"),
        ({"size": "99999x99999"}, "size: got 99999x99999, expected at most"),
        ({"size": "4x"}, "size: "),
        ({"guidance": 2.0}, "guidance: got a weight, but no condition"),
        ({"guidance": 1e300, "label": "a"}, "guidance: "),
        ({"label": "dog"}, "label: got 'dog'"),
        ({"label": "a,b,c", "n": 2}, "label: got 3 labels for 2 of n"),
        ({"label": "a", "prompt": "a"}, "label: given together with prompt"),
        ({"label": "a" * 2000}, "label: "),
        ({"model": "dall-e-3"}, "model: got 'dall-e-3', expected 'numpy'"),
        ({"response_format": "url"}, "response_format: "),
        ({"deadline_s": 0}, "deadline_s: "),
        ({"quality": "hd"}, "quality: there is no such field; known are prompt, label,"),
        ({"promt": "a"}, "promt: there is no such field; did you mean prompt?"),
    ],
)
def test_a_wrong_field_is_named_with_status_400(grey, fields: dict[str, Any], message: str) -> None:
    _, client = grey
    answer = client.post(**fields)
    assert answer.status == 400
    assert answer.message.startswith(message)
    assert answer.body["error"]["type"] == "invalid_request_error"
    named = message.partition(":")[0]
    assert answer.body["error"]["param"] == (None if named in ("quality", "promt") else named)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"guidance": NaN}', b'{"guidance": Infinity, "label": "a"}',
     b'{"n": 1e400}', b'{"seed": ' + b"1" * 60000 + b"}", b'{"n": -0.0}', b"[" * 60000, b'{"n":' * 10000],
)  # fmt: skip
def test_hostile_json_is_status_400(grey, body: bytes) -> None:
    _, client = grey
    assert client.post(body).status == 400
    assert client.post(steps=2).status == 200


def test_a_body_that_is_too_large_or_not_plain_json_is_not_read(grey) -> None:
    _, client = grey
    assert client.post(b" " * 65537).status == 413
    chunks = iter([b" " * 40000, b" " * 40000])
    assert client.post(chunks).status == 413, "sent without its length"
    assert client.post(gzip.compress(b" " * 10**6), headers={"Content-Encoding": "gzip"}).status == 415
    assert client.post(b"n=1", headers={"Content-Type": "application/x-www-form-urlencoded"}).status == 415


def test_a_body_that_does_not_come_is_given_up() -> None:
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
    with (
        serving(numpy_sampler(shape=(1, 4, 4)), limits=Limits(body_s=0.05)) as (client, *_),
        socket.create_connection(("127.0.0.1", client.port), PATIENCE_S) as slow,
    ):
        slow.sendall(head.encode() + b"{")
        assert slow.recv(100).startswith(b"HTTP/1.1 408")


def test_a_client_that_goes_away_in_its_body_is_no_error(grey, caplog: pytest.LogCaptureFixture) -> None:
    _, client = grey
    with socket.create_connection(("127.0.0.1", client.port), PATIENCE_S) as gone:
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
        gone.sendall(head.encode() + b"{")
    assert client.post(steps=2).status == 200
    assert caplog.text == ""


@pytest.mark.parametrize("path", ["/", "/healthz", "/metrics", "/v1/models", "/v1/none"])
def test_head_is_get_without_the_body(grey, path: str) -> None:
    _, client = grey
    connection = client.connect()
    with contextlib.closing(connection):
        connection.request("HEAD", path)
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (client.get(path).status, b"")
        assert int(answer.getheader("content-length")) > 0
        connection.request("HEAD", path)  # nothing is left of the first answer
        assert connection.getresponse().status == answer.status


def test_a_label_may_be_a_number() -> None:
    with serving(numpy_sampler(labelled=True, shape=(1, 4, 4))) as (client, *_):
        by_name, by_text, by_number = (client.post(label=label, seed=1, steps=2).pixels for label in ("c", "2", 2))
        assert np.array_equal(by_name, by_number)
        assert np.array_equal(by_name, by_text)
        assert client.post(label=3).message.startswith("label: got '3', expected one of a, b, c")


def test_an_unknown_path_and_method_are_refused_in_the_same_form(grey) -> None:
    _, client = grey
    assert client.get("/v1/none").message == "Not Found"
    assert client.get(PATH).status == 405


def test_the_token_is_asked_of_those_who_draw() -> None:
    with serving(numpy_sampler(shape=(1, 4, 4)), token="s3cret") as (client, *_):
        for given in (None, "Bearer wrong", "s3cret", "Basic s3cret", "Bearer"):
            headers = {} if given is None else {"Authorization": given}
            assert client.post(steps=2, headers=headers).status == 401
        for given in ("Bearer s3cret", "bearer s3cret", "BEARER  s3cret"):
            assert client.post(steps=2, headers={"Authorization": given}).status == 200
        assert client.get("/healthz").status == 200


def test_a_full_service_says_when_to_come_again(held) -> None:
    sampler, client, engine, _ = held
    first = in_background(client, n=4, steps=3)
    until(lambda: engine.held == 4)
    answer = client.post()
    assert answer.status == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert "capacity of 4" in answer.message
    assert client.get("/readyz").status == 200
    sampler.backend.gate.open()
    assert first.result(PATIENCE_S).status == 200


def test_a_request_past_its_deadline_is_status_504(held) -> None:
    sampler, client, engine, _ = held
    late, other = in_background(client, steps=50, deadline_s=0.01), in_background(client, steps=5)
    until(lambda: engine.held == 2)
    sampler.backend.gate.await_call()
    time.sleep(0.02)
    sampler.backend.gate.open()
    assert late.result(PATIENCE_S).status == 504
    assert other.result(PATIENCE_S).status == 200


def test_a_client_that_goes_away_frees_its_place(held) -> None:
    _, client, engine, _ = held
    connection = client.connect()
    connection.request("POST", PATH, json.dumps({"n": 3, "steps": 50}), {"Content-Type": "application/json"})
    until(lambda: engine.held == 3)
    connection.close()
    until(lambda: engine.held == 0)


def test_numbers_that_are_none_are_status_500_for_that_request_alone(held) -> None:
    sampler, client, engine, _ = held

    def fault(feeds: Any, m: np.ndarray) -> None:
        m[feeds["t"] > 95] = np.nan

    sampler.backend.fault = fault
    bad, good = in_background(client, solver="ddim", steps=100), in_background(client, solver="ddim", steps=5)
    until(lambda: engine.held == 2)
    sampler.backend.gate.open()
    assert bad.result(PATIENCE_S).status == 500
    assert "see its log" in bad.result().message
    assert good.result(PATIENCE_S).status == 200


def test_a_service_whose_device_is_lost_asks_to_be_restarted() -> None:
    sampler = numpy_sampler(shape=(1, 4, 4))
    with serving(sampler) as (client, engine, _):
        assert client.get("/healthz").status == 200
        sampler.close()
        answers = [client.post(steps=2).status for _ in range(3)]
        until(lambda: not engine.alive)
        assert answers == [500, 500, 500]
        assert client.post(steps=2).status == 503
        assert [client.get(path).status for path in ("/healthz", "/readyz")] == [503, 503]


# -- ready, and the end ---------------------------------------------------------------------------------------------


def test_it_is_not_ready_before_it_is_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    warm = threading.Event()
    monkeypatch.setattr(Engine, "warmup", lambda self: warm.wait(PATIENCE_S))
    seen = []

    def first_answers(client: Client) -> None:
        seen.extend([client.get("/readyz").status, client.get("/healthz").status])
        refused = client.post(steps=2)
        seen.extend([refused.status, refused.headers["retry-after"]])
        warm.set()
        await_ready(client)

    monkeypatch.setattr("numpy_service.await_ready", first_answers)
    with serving(numpy_sampler(shape=(1, 4, 4))) as (client, *_):
        assert client.post(steps=2).status == 200
    assert seen == [503, 200, 503, "1"]


def test_a_drain_answers_what_was_accepted_and_refuses_the_rest(held) -> None:
    sampler, client, engine, server = held
    accepted = [in_background(client, n=2, steps=5, seed=seed) for seed in range(2)]
    until(lambda: engine.held == 4)
    server.handle_exit(signal.SIGTERM, None)
    until(lambda: not engine.accepting)
    refused = client.post()
    assert (refused.status, refused.headers["retry-after"]) == (503, "1")
    assert refused.headers["connection"] == "close"
    assert client.get("/readyz").status == 503
    assert client.get("/healthz").status == 200
    sampler.backend.gate.open()
    assert [answer.result(PATIENCE_S).status for answer in accepted] == [200, 200]
    until(lambda: server.should_exit)


def test_a_second_signal_stops_at_once(held) -> None:
    sampler, client, engine, server = held
    lost = in_background(client, n=2, steps=50)
    until(lambda: engine.held == 2)
    server.handle_exit(signal.SIGTERM, None)
    assert not server.should_exit
    server.handle_exit(signal.SIGTERM, None)
    until(lambda: engine.held == 0)
    sampler.backend.gate.open()
    until(lambda: server.force_exit)
    assert server.aborted
    assert lost.result(PATIENCE_S).status == 503, "its client is told"


def test_a_call_that_does_not_return_is_the_last_resorts(held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddpm_deploy.serve.server.ABORT_S", 0.05)
    sampler, client, _, server = held
    ended = threading.Event()
    server._last_resort = ended.set
    lost = in_background(client, steps=50)
    sampler.backend.gate.await_call()
    for _ in range(2):
        server.handle_exit(signal.SIGTERM, None)
    assert ended.wait(PATIENCE_S)
    assert lost.result(PATIENCE_S).status == 503


def test_an_engine_that_is_warm_is_ready_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "warmup", lambda self: pytest.fail("warmed again"))
    with Engine(numpy_sampler(shape=(1, 4, 4))) as engine:
        service = make_app(engine, warm=True).state.service
        assert service.ready


def test_a_service_that_cannot_be_warmed_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, seen = numpy_sampler(shape=(1, 4, 4)), []
    sampler.backend.fault = lambda feeds, m: [][0]

    def first_answers(client: Client) -> None:
        until(lambda: client.get("/healthz").status == 503)
        seen.extend([client.get("/readyz").status, client.post(steps=2).status])

    monkeypatch.setattr("numpy_service.await_ready", first_answers)
    with serving(sampler):
        assert seen == [503, 503]


def test_a_command_that_cannot_be_warmed_ends_and_says_why(monkeypatch, capsys: pytest.CaptureFixture) -> None:
    def fail(self: Engine) -> None:
        raise BackendError("no kernel for this")

    monkeypatch.setattr(Engine, "warmup", fail)
    assert main(["--port", "0", "--threads", "1"]) == 2
    assert "error: the warm-up failed: no kernel for this" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("token", "message"), [("", "is empty"), (" ", "is empty"), ("a\n", "has spaces"), ("ü", "ASCII")]
)
def test_a_token_that_cannot_be_meant_is_refused(monkeypatch, capsys, token: str, message: str) -> None:
    monkeypatch.setenv("DDPM_DEPLOY_TOKEN", token)
    assert main(["--port", "0"]) == 2
    printed = capsys.readouterr().err
    assert "DDPM_DEPLOY_TOKEN: " in printed
    assert message in printed


@pytest.mark.parametrize(("host", "expected"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_it_is_known_whether_others_can_reach_it(host: str, expected: bool) -> None:
    with listening(host, 0) as listener:
        assert is_open(listener) == expected


# -- the command ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.bundle"], "none.bundle"),
        (["--port", "70000"], "port: got 70000"),
        (["--drain-s", "nan"], "drain_s: got nan"),
        (["--max-n", "0"], "max_n: got 0, expected a whole number above 0"),
        (["--deadline-s", "inf"], "deadline_s: got inf"),
        (["--buckets", "0,4"], "buckets: got [0, 4]"),
        (["--capacity", "0"], "capacity: got 0"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments: list[str], message: str) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_help_shows_every_flag_and_its_default(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    assert "(default: 127.0.0.1)" in printed
    assert "(default: 8000)" in printed
    assert "DDPM_DEPLOY_TOKEN" in printed


def test_a_port_in_use_is_one_line(capsys: pytest.CaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["--port", str(taken.getsockname()[1])]) == 2
    assert "is in use on 127.0.0.1; give another, or 0 for any free one" in capsys.readouterr().err


def test_samples_that_are_no_pictures_are_refused(sampler: Sampler) -> None:
    with Engine(sampler) as engine, pytest.raises(ValueError, match="are no pictures"):
        make_app(engine)


def test_the_engine_alone_loads_no_web_framework() -> None:
    code = "import sys, ddpm_deploy.serve; print({'fastapi', 'uvicorn', 'pydantic', 'torch'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
