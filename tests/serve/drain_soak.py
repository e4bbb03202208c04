"""`python tests/serve/drain_soak.py 50`: SIGTERM under load, so many times; a request accepted and lost is a failure.

Clients send plain and streamed requests, each with an id of its own. What the service accepted is in its log; each of
those must have come back whole.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from numpy_service import PATH, events
from service_process import Running, running

CLIENTS = 6
PATIENCE_S = 20


@dataclass
class Outcome:
    """One round. lost: ids that were accepted, or sent before the signal, and not answered."""

    accepted: int = 0
    lost: list[str] = field(default_factory=list)
    refused: int = 0
    exit_code: int | None = None
    drain_s: float = 0.0


@dataclass
class Asked:
    """One request of a client. status: 0 where the connection was cut off."""

    id: str
    began: float
    status: int = 0
    whole: bool = False


def drain_once(log: Path, seed: int) -> Outcome:
    """Start the service, load it, send SIGTERM, and compare what it accepted with what came back."""
    chance = random.Random(seed)
    asked: list[Asked] = []
    with running(log) as service:
        clients = [threading.Thread(target=_keep_asking, args=(service, asked, seed, i)) for i in range(CLIENTS)]
        for client in clients:
            client.start()
        while len(asked) < 3 * CLIENTS:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        signalled = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        for client in clients:
            client.join(PATIENCE_S)
        outcome = Outcome(exit_code=service.process.wait(PATIENCE_S), drain_s=time.monotonic() - signalled)
        accepted = {line["request_id"] for line in service.requests() if "n" in line}
    whole = {each.id for each in asked if each.whole}
    early = {each.id for each in asked if each.began < signalled and each.status == 0}
    outcome.accepted, outcome.lost = len(accepted), sorted((accepted - whole) | early)
    outcome.refused = sum(each.status in (429, 503) for each in asked)
    return outcome


def _keep_asking(service: Running, asked: list[Asked], seed: int, number: int) -> None:
    """Until the service is gone."""
    chance = random.Random(seed * CLIENTS + number)
    for count in range(10_000):
        one = Asked(f"{number}-{count}", time.monotonic())
        body = {"steps": chance.choice((4, 12, 50)), "n": chance.choice((1, 1, 3)), "stream": chance.random() < 0.5}
        try:
            _ask(service, one, body)
        except ConnectionRefusedError:
            return
        except (ConnectionResetError, BrokenPipeError, http.client.HTTPException):
            asked.append(one)
            return
        asked.append(one)


def _ask(service: Running, one: Asked, body: dict) -> None:
    headers = {"Content-Type": "application/json", "X-Request-Id": one.id}
    with contextlib.closing(service.client.connect()) as connection:
        connection.request("POST", PATH, json.dumps(body), headers)
        response = connection.getresponse()
        one.status = response.status
        if response.status == 200 and body["stream"]:
            completed = [event for event in events(response) if event["type"] == "image_generation.completed"]
            one.whole = len(completed) == body["n"]
        else:
            one.whole = response.status == 200 and len(json.loads(response.read())["data"]) == body["n"]


def main(rounds: int) -> int:
    """A line for each round, and the sum of what was lost."""
    lost = accepted = 0
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(rounds):
            outcome = drain_once(Path(folder) / "log.jsonl", seed)
            counts = f"{outcome.accepted:>4} accepted, {len(outcome.lost)} lost, {outcome.refused:>3} refused"
            print(f"{seed + 1:>3}: {counts}, exit code {outcome.exit_code}, {outcome.drain_s:.2f} s", flush=True)
            accepted += outcome.accepted
            lost += len(outcome.lost) + (outcome.exit_code != 0)
    print(f"SIGTERM under load, {rounds} times: {accepted} requests accepted, {lost} lost or ended badly")
    return int(lost > 0)


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 50))
