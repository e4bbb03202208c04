"""A service over the network of numpy, on a port of this machine alone, and a client of it."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy_network import PATIENCE_S
from PIL import Image

from ddpm_deploy import Sampler
from ddpm_deploy.serve import Engine
from ddpm_deploy.serve.app import make_app
from ddpm_deploy.serve.guard import Bounds
from ddpm_deploy.serve.limits import Limits
from ddpm_deploy.serve.server import DrainingServer, listening
from ddpm_deploy.serve.tracing import Tracing

PATH = "/v1/images/generations"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: Any

    @property
    def message(self) -> str:
        return self.body["error"]["message"]

    @property
    def pixels(self) -> list[np.ndarray]:
        return [picture(each) for each in self.body["data"]]


class Client:
    """Each request has a connection of its own, so that it may be used from many threads."""

    def __init__(self, port: int) -> None:
        self.port = port

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)

    def get(self, path: str) -> Answer:
        return self._ask("GET", path, None, {})

    def post(self, body: Any = None, headers: dict[str, str] | None = None, **fields: Any) -> Answer:
        data = json.dumps(fields).encode() if body is None else body
        return self._ask("POST", PATH, data, {"Content-Type": "application/json", **(headers or {})})

    @contextlib.contextmanager
    def stream(self, **fields: Any) -> Iterator[Iterator[dict[str, Any]]]:
        """The events of a request; leaving early closes the connection."""
        connection = self.connect()
        try:
            body = json.dumps({"stream": True, **fields})
            connection.request("POST", PATH, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            assert response.status == 200, response.read()
            assert response.getheader("content-type").startswith("text/event-stream")
            yield events(response)
        finally:
            connection.close()

    def _ask(self, method: str, path: str, data: Any, headers: dict[str, str]) -> Answer:
        connection = self.connect()
        try:
            connection.request(method, path, data, headers)
            response = connection.getresponse()
            read = {name.lower(): value for name, value in response.getheaders()}
            body = response.read()
            is_json = read.get("content-type") == "application/json"
            return Answer(response.status, read, json.loads(body) if is_json else body)
        finally:
            connection.close()


def events(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """What a browser's EventSource makes of the lines: comments and unnamed events are none."""
    name = None
    for line in lines:
        field, _, value = line.decode().rstrip("\n").partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            data = json.loads(value)
            assert data["type"] == name
            yield data


def picture(data: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data["b64_json"]))))


@contextlib.contextmanager
def serving(
    sampler: Sampler,
    *,
    limits: Limits | None = None,
    token: str | None = None,
    capacity: int = 64,
    tracing: Tracing | None = None,
    bounds: Bounds | None = None,
) -> Iterator[tuple[Client, Engine, DrainingServer]]:
    """A service that is ready, and stops by itself."""
    with listening("127.0.0.1", 0) as listener:
        engine = Engine(sampler, capacity=capacity)
        server = DrainingServer(make_app(engine, limits, token, tracing), engine, drain_s=PATIENCE_S, bounds=bounds)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        client = Client(listener.getsockname()[1])
        try:
            await_ready(client)
            yield client, engine, server
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)
            engine.close()
        assert not thread.is_alive()


def await_ready(client: Client) -> None:
    until = time.monotonic() + PATIENCE_S
    while client.get("/readyz").status != 200:
        assert time.monotonic() < until
        time.sleep(0.01)
