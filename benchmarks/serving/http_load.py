"""Open-loop load on an HTTP service, in a process of its own: `python -m benchmarks.serving.http_load`.

Reads a JSON object from its standard input: url, at (seconds), bodies, allowed_s, stop_after (how many may be late, or
null). Writes one: done (seconds after the start, null where no answer came), status. A minimal client on asyncio's
streams, and on uvloop where it is installed, so that little of the machine goes to it; connections are kept and used
again.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

GIVE_UP_S = 120.0
LOOK_S = 0.05

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Client:
    """Requests to one service, each on a connection that is free, or a new one."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port, self._path = str(parts.hostname), parts.port or 80, parts.path
        self._free: list[Connection] = []

    async def post(self, body: str) -> int:
        """The status of the answer, which is read to its end."""
        data = body.encode()
        head = (
            f"POST {self._path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n"
        )
        reader, writer = self._kept() or await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(head.encode() + data)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(answer.partition(b"content-length:")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
        except BaseException:
            writer.close()
            raise
        if b"connection: close" in answer:
            writer.close()
        else:
            self._free.append((reader, writer))
        return int(answer.split(b" ", 2)[1])

    def _kept(self) -> Connection | None:
        """A free connection that the service has not closed meanwhile."""
        while self._free:
            connection = self._free.pop()
            if not connection[0].at_eof():
                return connection
            connection[1].close()
        return None

    def close(self) -> None:
        for _, writer in self._free:
            writer.close()


async def offer(
    url: str, at: Sequence[float], bodies: Sequence[str], allowed_s: Sequence[float], stop_after: int | None
) -> dict[str, Any]:
    """Send each body at its time, whether or not the last ones are answered."""
    client, begin = Client(url), time.perf_counter() + LOOK_S
    done: list[float | None] = [None] * len(at)
    status: list[int | None] = [None] * len(at)

    async def ask(i: int) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            status[i] = await client.post(bodies[i])
            done[i] = time.perf_counter() - begin

    def lost() -> bool:
        now = time.perf_counter() - begin
        late = sum(
            (now if end is None else end) - due > most for end, due, most in zip(done, at, allowed_s, strict=True)
        )
        return stop_after is not None and late > stop_after

    tasks: list[asyncio.Task[None]] = []
    looked = 0.0
    for i, due in enumerate(at):
        pause = begin + due - time.perf_counter()
        await asyncio.sleep(max(0.0, pause))
        tasks.append(asyncio.create_task(ask(i)))
        if due - looked > LOOK_S * 4:
            looked = due
            if lost():
                break
    until = time.perf_counter() + GIVE_UP_S
    while tasks and time.perf_counter() < until and not lost():
        _, open_ = await asyncio.wait(tasks, timeout=LOOK_S)
        tasks = list(open_)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
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
