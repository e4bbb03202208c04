"""Open-loop load on an HTTP service, in a process of its own: `python -m benchmarks.serving.http_load`.

Reads a JSON object from its standard input: url, at (seconds), bodies, allowed_s, stop_after (how many may be late, or
null). Writes one: done (seconds after the start, null where no answer came), status. A minimal client, on uvloop
where it is installed, so that little of the machine goes to it; connections are kept and used again.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, cast
from urllib.parse import urlsplit

GIVE_UP_S = 120.0
LOOK_S = 0.05

Answered = Callable[[int, int | None], None]


class Connection(asyncio.Protocol):
    """One request at a time. answered: told the number of a request and the status of its answer, once that is whole,
    or None where the connection was lost. free: where it puts itself when it may be used again."""

    def __init__(self, answered: Answered, free: list[Connection]) -> None:
        self._answered, self._free = answered, free
        self._number: int | None = None
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def ask(self, number: int, request: bytes) -> None:
        """Send a request."""
        self._number, self._received = number, b""
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        head = head.lower()
        if len(body) < int(head.partition(b"content-length:")[2].partition(b"\r\n")[0]):
            return
        if b"connection: close" in head:
            self.close()
        else:
            self._free.append(self)
        self._end(int(head[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self._free:
            self._free.remove(self)
        self._end(None)

    def _end(self, status: int | None) -> None:
        if self._number is not None:
            self._answered(self._number, status)
        self._number = None

    def close(self) -> None:
        self._transport.close()


class Client:
    """Requests to one service, each on a connection that is free, or a new one; as bytes, made before."""

    def __init__(self, url: str, bodies: Sequence[str], answered: Answered) -> None:
        parts = urlsplit(url)
        self._where = str(parts.hostname), parts.port or 80
        self._requests = [_request(parts.path, parts.netloc, body.encode()) for body in bodies]
        self._answered = answered
        self._free: list[Connection] = []
        self._opening: set[asyncio.Task[None]] = set()

    def ask(self, number: int) -> None:
        """Send a request as soon as there is a connection; one that cannot be opened gives no answer."""
        if self._free:
            self._free.pop().ask(number, self._requests[number])
            return
        task = asyncio.create_task(self._open_and_ask(number))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open_and_ask(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(lambda: Connection(self._answered, self._free), *self._where)
        except OSError:
            self._answered(number, None)
        else:
            connection.ask(number, self._requests[number])

    def close(self) -> None:
        for connection in tuple(self._free):
            connection.close()


def _request(path: str, host: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


async def offer(
    url: str, at: Sequence[float], bodies: Sequence[str], allowed_s: Sequence[float], stop_after: int | None
) -> dict[str, Any]:
    """Send each body at its time, whether or not the last ones are answered."""
    done: list[float | None] = [None] * len(at)
    status: list[int | None] = [None] * len(at)
    open_: set[int] = set()

    def answered(number: int, code: int | None) -> None:
        open_.discard(number)
        if code is not None:
            done[number], status[number] = time.perf_counter() - begin, code

    def lost() -> bool:
        if stop_after is None:
            return False
        now = time.perf_counter() - begin
        times = zip(done, at, allowed_s, strict=True)
        return sum((now if end is None else end) - due > most for end, due, most in times) > stop_after

    client, begin = Client(url, bodies, answered), time.perf_counter() + LOOK_S
    looked = 0.0
    for number, due in enumerate(at):
        pause = begin + due - time.perf_counter()
        await asyncio.sleep(max(0.0, pause))
        open_.add(number)
        client.ask(number)
        if due - looked > LOOK_S * 4:
            looked = due
            if lost():
                break
    until = time.perf_counter() + GIVE_UP_S
    while open_ and time.perf_counter() < until and not lost():
        await asyncio.sleep(LOOK_S)
    client.close()
    return {"done": done, "status": status}


def main() -> None:
    try:
        from uvloop import run
    except ImportError:
        from asyncio import run
    json.dump(run(offer(**json.load(sys.stdin))), sys.stdout)


if __name__ == "__main__":
    main()
