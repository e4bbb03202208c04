"""HTTP/1.1 for clients that mean no good: everything that one may keep waiting, or keep open, has a bound."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from ddpm_deploy.serve.problems import Problem

MAX_HEAD_BYTES = 16384
MAX_PIPELINED = 16  # requests that wait for the answer to the one before; after them the connection is closed
SPARE_CONNECTIONS = 64  # which are told that there is no room; more are not even told
OTHER_FILES = 256  # of the model, its runtime and the log
NO_HTTP = Problem(400, "not a request of HTTP/1.1")
TOO_LONG = Problem(431, f"the head of the request has more than {MAX_HEAD_BYTES} bytes")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bounds:
    """connections: at once; beyond it status 503. head_s: from a connection, or the first byte of a further request, to
    the end of the request's head; also for the rest of a body that nobody waits for. stall_s: how long a client may not
    read what it was sent."""

    connections: int = 2048
    head_s: float = 10.0
    stall_s: float = 30.0


class Part(Enum):
    """What comes next of a request; NONE where the last one is complete, and nothing of another has come."""

    HEAD = auto()
    BODY = auto()
    NONE = auto()


class _Refusal(Exception):
    """Stops the parser."""


class GuardedProtocol(HttpToolsProtocol):
    """One connection, by uvicorn's own protocol, and closed where its client takes too long."""

    def __init__(self, *args: Any, bounds: Bounds, refused: Callable[[int], object], **options: Any) -> None:
        super().__init__(*args, **options)
        self._bounds, self._refused = bounds, refused
        self._ending: asyncio.TimerHandle | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._crowded = self._full = False
        self._part, self._problem = Part.HEAD, NO_HTTP
        self._since_progress = self._head_bytes = self._hosts = 0
        self._under_way: RequestResponseCycle | None = None  # the others wait behind it

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
        self._unset_keepalive_if_required()
        self._leave()
        self.resume_writing()
        if self._ending is not None:
            self._ending.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing() or self._full:
            return
        if self._crowded:
            self._refuse(Problem(503, "the service has no connection left; ask again", {"Retry-After": "1"}))
            return
        self._since_progress += len(data)
        self._feed(data)
        if self._since_progress > MAX_HEAD_BYTES and not (self._full or self.transport.is_closing()):
            self._refuse(TOO_LONG)
        if self._owes() and not self.transport.is_closing():
            self._expect_more()
        else:
            self._expect_no_more()

    # -- what the parser finds ------------------------------------------------------------------------------------

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as stop:  # before the body, which would be taken for another protocol
            head = self._head_without_offer()
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
            self._feed(head + data[stop.args[0] :])
        except httptools.HttpParserError:
            if self._problem is TOO_LONG or self._part is Part.BODY or self._is_answered():
                self._refuse(self._problem)
            else:  # after the requests before it are answered
                self._full, self.cycle.keep_alive = True, False

    def _head_without_offer(self) -> bytes:
        """The request that is read, without the protocol that its client would rather speak."""
        kept = [name + b": " + value + b"\r\n" for name, value in self.headers if name != b"upgrade"]
        first = f"HTTP/{self.parser.get_http_version()}\r\n".encode()
        return b"%b %b %b%b\r\n" % (self.parser.get_method(), self.url, first, b"".join(kept))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._unset_keepalive_if_required()
        if self._part is not Part.HEAD:  # which it is on a new connection
            self._part, self._since_progress = Part.HEAD, 0
        self._head_bytes = self._hosts = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + len(":\r\n"))
        if self._part is Part.BODY:  # a trailer, which is no header
            return
        super().on_header(name, value)
        name = self.headers[-1][0]
        self._hosts += name == b"host"
        if name == b"transfer-encoding" and value.lower() != b"chunked":
            raise _Refusal

    def on_headers_complete(self) -> None:
        if (self._hosts != 1 and self.parser.get_http_version() != "1.0") or self.parser.get_method() == b"CONNECT":
            raise _Refusal
        if len(self.pipeline) >= MAX_PIPELINED:
            raise _Refusal
        if not self.parser.should_upgrade():
            super().on_headers_complete()
            self._part, self._since_progress = Part.BODY, 0
            self._unset_keepalive_if_required()
            if not self.pipeline:
                self._under_way = self.cycle

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._since_progress = 0

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()
            self._part, self._since_progress = Part.NONE, 0

    def _count(self, count: int) -> None:
        """Count bytes of a head, also where all of it comes at once."""
        self._head_bytes += count
        if self._head_bytes > MAX_HEAD_BYTES:
            self._problem = TOO_LONG
            raise _Refusal

    # -- patience -------------------------------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        """The client has its answer; what is left of its request must not take forever."""
        if self.pipeline:
            self._under_way = self.pipeline[-1][0]
        super().on_response_complete()
        if self.transport.is_closing():
            self._end_soon()
        elif self._owes():
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

    def _owes(self) -> bool:
        """Whether the client's next bytes are what everything waits for."""
        return self._part is not Part.NONE and self._is_answered()

    def _is_answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

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
        begun = self.cycle is not None and self.cycle.response_started
        answers = not (self.pipeline or (begun and (self._part is Part.BODY or not self.cycle.response_complete)))
        self._leave()
        if not answers:
            self.transport.abort()
            return
        body = json.dumps(problem.body).encode()
        headers = {**problem.headers, "Content-Type": "application/json", "Content-Length": str(len(body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in {**headers, "Connection": "close"}.items())
        self.transport.write(STATUS_LINE[problem.status] + head.encode() + b"\r\n" + body)
        self.transport.close()
        self._end_soon()

    def _leave(self) -> None:
        """Tell the request under way that nobody waits for its answer, and forget those behind it."""
        self.pipeline.clear()
        if self._under_way is not None:
            self._under_way.disconnected = True
            self._under_way.message_event.set()


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
