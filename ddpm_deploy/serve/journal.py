"""What is written down of each request: its id, a line in the log, counters, and a trace."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ddpm_deploy.serve.generation import PATH, Drawing
from ddpm_deploy.serve.handle import Handle
from ddpm_deploy.serve.metrics import Metrics
from ddpm_deploy.serve.problems import problem_of
from ddpm_deploy.serve.tracing import Tracing

ID = "X-Request-Id"
SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}", re.ASCII)
QUIET = ("/healthz", "/readyz", "/metrics")
SHOWN_PATH = 200

logger = logging.getLogger("ddpm_deploy.serve.requests")


@dataclass
class Note:
    """One request. status: 0 while there is no answer. drawing, handle: of a request that the engine accepted."""

    id: str
    method: str
    path: str
    began: float = field(default_factory=time.monotonic)
    status: int = 0
    drawing: Drawing | None = None
    handle: Handle | None = None

    @property
    def for_pictures(self) -> bool:
        return (self.method, self.path) == ("POST", PATH)

    def fields(self) -> dict[str, Any]:
        """For a log; times in seconds."""
        known: dict[str, Any] = {"method": self.method, "path": self.path, "status": self.status}
        known["seconds"] = round(time.monotonic() - self.began, 6)
        if self.drawing is not None:
            arguments = self.drawing.arguments
            plan = arguments["plan"]
            known |= {"n": arguments["n"], "solver": plan.solver, "steps": plan.nfe, "seed": arguments["seed"]}
        if (handle := self.handle) is not None:
            if handle.began is not None:
                known["queue_s"] = round(handle.began - handle.submitted, 6)
            if handle.cancelled():
                known["cancelled"] = True
            elif handle.done() and (error := handle.error()) is not None:
                known["error"] = str(error)
        return known


current: ContextVar[Note | None] = ContextVar("request", default=None)


class Journal:
    """Middleware: every answer has an id, also that of a defect of ours.

    admit: raises what a request for pictures is refused with, by its headers; the application, which would take longer
    to refuse it, then hears nothing of it.
    """

    def __init__(
        self, app: ASGIApp, admit: Callable[[Headers], None], metrics: Metrics, tracing: Tracing | None
    ) -> None:
        self._app, self._admit, self._metrics, self._tracing = app, admit, metrics, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        note = _note(scope)
        current.set(note)
        if note.method == "HEAD":  # as GET; the server leaves the body out
            scope = {**scope, "method": "GET"}
        scope.setdefault("state", {})["note"] = note
        span = self._tracing.begin(scope) if self._tracing is not None and note.for_pictures else None

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                note.status = message["status"]
                MutableHeaders(scope=message)[ID] = note.id
            await send(message)

        try:
            await self._answered(scope, receive, noted, note)
        finally:
            if self._tracing is not None and span is not None:
                self._tracing.end(span, note.handle, note.fields(), note.id)
            self._write(note)

    async def _answered(self, scope: Scope, receive: Receive, send: Send, note: Note) -> None:
        try:
            if note.for_pictures:
                self._admit(Headers(scope=scope))
            await self._app(scope, receive, send)
        except ClientDisconnect:
            return
        except Exception as error:
            problem = problem_of(error)
            if note.status:
                raise
            await JSONResponse(problem.body, problem.status, problem.headers)(scope, receive, send)

    def _write(self, note: Note) -> None:
        if note.for_pictures and note.status:
            self._metrics.answered(note.status, accepted=note.handle is not None)
        level = logging.DEBUG if note.path in QUIET else logging.INFO
        logger.log(level, "request", extra={"fields": note.fields()})


def _note(scope: Scope) -> Note:
    given = Headers(scope=scope).get(ID, "")
    known = given if SANE_ID.fullmatch(given) else uuid.uuid4().hex
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    return Note(known, scope["method"], path[:SHOWN_PATH])
