"""The command itself, as a process: signals under load, overload, and clients that go away."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the HTTP service needs it")
pytest.importorskip("uvicorn", reason="the HTTP service needs it")
pytest.importorskip("onnxruntime", reason="the service of these tests runs on it")

from drain_soak import drain_once
from numpy_network import PATIENCE_S, numpy_sampler
from numpy_service import PATH, Client, picture, serving
from service_process import running

from ddpm_deploy.images import to_pil
from ddpm_deploy.serve import Engine

SOLVERS = ("ddim", "unipc", "dpmpp_2m", "euler_a", "heun")
REFUSED_S, ROUNDS = 0.05, 3  # a machine that is busy with other things has more than one chance


@pytest.mark.parametrize("seed", range(5))
def test_sigterm_under_load_loses_nothing_and_ends_in_good_order(tmp_path: Path, seed: int) -> None:
    outcome = drain_once(tmp_path / "log.jsonl", seed)
    assert outcome.lost == []
    assert outcome.exit_code == 0
    assert outcome.accepted >= 15


def test_a_second_sigterm_ends_it_at_once_and_says_so_by_its_exit_code(tmp_path: Path) -> None:
    with running(tmp_path / "log.jsonl") as service:
        body = {"n": 16, "steps": 1000, "solver": "ddpm"}
        waiting = threading.Thread(target=_ask_in_vain, args=(service.client, body), daemon=True)
        waiting.start()
        _until(lambda: b"ddpm_deploy_held_samples 16.0" in service.client.get("/metrics").body)
        service.process.send_signal(signal.SIGTERM)
        _until(lambda: service.client.get("/readyz").status == 503)
        began = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(PATIENCE_S) == 1
        assert time.monotonic() - began < 5
        assert "Traceback" not in service.log.read_text()
        waiting.join(PATIENCE_S)


def test_ten_times_the_load_is_refused_at_once_and_nothing_breaks(tmp_path: Path) -> None:
    capacity, clients, each, late_s = 8, 80, 5, []
    with running(tmp_path / "log.jsonl", "--capacity", str(capacity)) as service:
        for _ in range(ROUNDS):
            answers = asyncio.run(_overload(service.client.port, clients, each))
            assert service.client.post(steps=4).status == 200
            statuses = [status for status, _ in answers]
            refused_s = [seconds for status, seconds in answers if status == 429]
            assert len(statuses) == clients * each
            assert set(statuses) == {200, 429}
            assert len(refused_s) > clients
            late_s.append(statistics.quantiles(refused_s, n=20)[-1])
            if late_s[-1] < REFUSED_S:
                break
    assert min(late_s) < REFUSED_S, "seconds that a client waits for its refusal, 95 of 100 times"


def test_half_of_a_thousand_requests_cancelled_leaves_no_slot_taken_and_no_picture_changed() -> None:
    sampler, chance = numpy_sampler(), random.Random(0)
    asked = [{"solver": chance.choice(SOLVERS), "steps": chance.randint(2, 12), "seed": seed} for seed in range(1000)]
    with Engine(sampler, capacity=1000) as engine:
        handles = [engine.submit(**arguments) for arguments in asked]
        cancelled = chance.sample(range(1000), 500)
        for index in cancelled:
            handles[index].cancel()
            if index % 50 == 0:
                time.sleep(0.001)
        kept = [index for index in range(1000) if not handles[index].cancelled()]
        found = {index: handles[index].result(PATIENCE_S) for index in kept}
        assert engine.held == engine.waiting == 0
        assert engine.submit(1000, steps=1).result(PATIENCE_S).shape[0] == 1000, "all places are free again"
    assert 500 <= len(kept) < 900, "some were drawn before they were cancelled"
    for index, samples in found.items():
        np.testing.assert_array_equal(samples, sampler.sample(1, **asked[index]))


def test_half_of_the_clients_going_away_changes_no_picture_of_the_others() -> None:
    sampler = numpy_sampler(shape=(1, 4, 4))
    with serving(sampler, capacity=256) as (client, engine, _):

        def one(seed: int) -> np.ndarray | None:
            if seed % 2:
                return picture(client.post(seed=seed, steps=5 + seed % 7).body["data"][0])
            with client.stream(seed=seed, steps=50) as events:
                next(events)
            return None

        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(one, range(1000)))
        _until(lambda: engine.held == 0)
    for seed in range(1, 1000, 2):
        expected = np.asarray(to_pil(sampler.sample(1, seed=seed, steps=5 + seed % 7))[0])
        np.testing.assert_array_equal(found[seed], expected)


def _ask_in_vain(client: Client, body: dict) -> None:
    try:
        client.post(**body)
    except (OSError, ValueError):
        return


def _until(condition) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


async def _overload(port: int, clients: int, each: int) -> list[tuple[int, float]]:
    """(status, seconds) of requests by so many clients, each of whom asks again within a second."""
    chance = random.Random(0)

    async def one() -> list[tuple[int, float]]:
        answers = []
        for _ in range(each):
            await asyncio.sleep(chance.random())
            answers.append(await _timed(port))
        return answers

    return [answer for answers in await asyncio.gather(*(one() for _ in range(clients))) for answer in answers]


async def _timed(port: int) -> tuple[int, float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps({"steps": 50, "n": 1}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    began = time.monotonic()
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    answer = await reader.read()
    writer.close()
    return int(answer.split()[1]), time.monotonic() - began
