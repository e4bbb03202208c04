"""HTTP/1.1 for clients that mean no good: everything that one may keep waiting, or keep open, has a bound."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ddpm_deploy.serve.problems import Problem

MAX_HEAD_BYTES = 16384
HEAD_END = re.compile(rb"\n\r?\n")
SPARE_CONNECTIONS = 64  # which are told that there is no room; more are not even told
OTHER_FILES = 256  # of the model, its runtime and the log

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bounds:
    """connections: at once; beyond it status 503. head_s: from a connection, or the first byte of a further request, to
    the end of the request's head; also for the rest of a body that nobody waits for. stall_s: how long a client may not
    read what it was sent."""

    connections: int = 2048
    head_s: float = 10.0
    stall_s: float = 30.0


class GuardedProtocol(H11Protocol):
    """One connection, by uvicorn's own protocol, and closed where its client takes too long."""

    def __init__(self, *args: Any, bounds: Bounds, refused: Callable[[int], object], **options: Any) -> None:
        super().__init__(*args, **options)
        self._bounds, self._refused = bounds, refused
        self._ending: asyncio.TimerHandle | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._crowded = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        over = len(self.connections) - self._bounds.connections
        if over > SPARE_CONNECTIONS:
            self._refused(503)
            transport.abort()
        self._crowded = over > 0
        self._expect_more()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_no_more()
        self.resume_writing()
        if self._ending is not None:
            self._ending.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._crowded:
            self._refuse(Problem(503, "the service has no connection left; ask again", {"Retry-After": "1"}))
            return
        if self.conn.their_state is h11.IDLE and _is_too_long(self.conn.trailing_data[0] + data):
            self._refuse(Problem(431, f"the head of the request has more than {MAX_HEAD_BYTES} bytes"))
            return
        super().data_received(data)
        if self._owes():
            self._expect_more()
        else:
            self._expect_no_more()

    def on_response_complete(self) -> None:
        """The client has its answer; what is left of its request must not take forever."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._end_soon()
        elif self._owes() and (self.conn.their_state is not h11.IDLE or self.conn.trailing_data[0]):
            self._expect_more()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._end_soon()

    def pause_writing(self) -> None:
        """The client does not read."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self._bounds.stall_s, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def send_400_response(self, msg: str) -> None:
        """Answer in the form of all other errors."""
        self._refuse(Problem(400, "not a request of HTTP/1.1"))

    def _owes(self) -> bool:
        """Whether the client's next bytes are what everything waits for."""
        answered = self.cycle is None or self.cycle.response_complete
        return self.conn.their_state is h11.IDLE or (self.conn.their_state is h11.SEND_BODY and answered)

    def _expect_more(self) -> None:
        if self._patience is None:
            self._patience = self.loop.call_later(self._bounds.head_s, self._too_slow)

    def _expect_no_more(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _end_soon(self) -> None:
        """The connection is closing: do not wait for ever until the client has read what is left."""
        if self._ending is None:
            self._ending = self.loop.call_later(self._bounds.stall_s, self.transport.abort)

    def _too_slow(self) -> None:
        self._refuse(Problem(408, "the head of the request took too long to arrive"))

    def _refuse(self, problem: Problem) -> None:
        """Answer, unless an answer has begun, and close."""
        self._refused(problem.status)
        logger.debug("refused with status %d: %s", problem.status, problem.message)
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(problem.body).encode()
            headers = {**problem.headers, "Content-Type": "application/json", "Content-Length": str(len(body))}
            head = [(name.encode(), value.encode()) for name, value in {**headers, "Connection": "close"}.items()]
            response = h11.Response(status_code=problem.status, headers=head)
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()
            self._end_soon()
        else:
            self.transport.abort()


def _is_too_long(received: bytes) -> bool:
    """Whether a request that begins so has too long a head; h11 minds only those that come in pieces."""
    return len(received) > MAX_HEAD_BYTES and HEAD_END.search(received, 0, MAX_HEAD_BYTES) is None


def room_for(connections: int) -> int:
    """How many of so many connections the process may have; its limit of open files is raised where that helps."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + SPARE_CONNECTIONS + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return connections if soft == resource.RLIM_INFINITY else max(1, min(connections, soft - wanted + connections))
