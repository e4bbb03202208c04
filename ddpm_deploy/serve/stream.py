"""A request as server-sent events, in the form of OpenAI's image streaming."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from ddpm_deploy.bundle import Manifest
from ddpm_deploy.serve.engine import Engine
from ddpm_deploy.serve.generation import Drawing
from ddpm_deploy.serve.handle import Array, Handle, Preview, Settled
from ddpm_deploy.serve.line import Turn
from ddpm_deploy.serve.pictures import encoded, size_of
from ddpm_deploy.serve.problems import problem_of

QUEUED, PARTIAL, COMPLETED = (f"image_generation.{name}" for name in ("queued", "partial_image", "completed"))
ERROR = "error"
EVENT = {
    "type": "object",
    "description": "An event of the stream; `data` is JSON, with the `type` that `event` says.",
    "properties": {"event": {"enum": [QUEUED, PARTIAL, COMPLETED, ERROR]}, "data": {"type": "string"}},
    "required": ["event", "data"],
}
HEARTBEAT_S = 1.0
UNDER_WAY = b": under way\n\n"
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the second keeps nginx from collecting events


class EventStream(StreamingResponse):
    """The answer to a request with `stream`; a client that goes away cancels it."""

    def __init__(self, engine: Engine, handle: Handle, drawing: Drawing) -> None:
        self._handle = handle
        super().__init__(_Events(engine, handle, drawing).all(), media_type="text/event-stream", headers=HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._handle.cancel()


class _Events:
    def __init__(self, engine: Engine, handle: Handle, drawing: Drawing) -> None:
        self._engine, self._handle, self._drawing = engine, handle, drawing
        self._manifest: Manifest = engine.samplers[0].manifest
        self._previews: Counter[int] = Counter()

    async def all(self) -> AsyncIterator[bytes]:
        """Where it stands in the queue; previews and pictures as they come; the errors of those that failed."""
        errors = []
        try:
            yield self._queued(self._engine.turn(self._handle) or Turn(0, 0.0))
            async for news in self._handle.follow(HEARTBEAT_S):
                if news is None:
                    yield self._heartbeat()
                elif isinstance(news, Preview):
                    if news.step + 1 < news.steps:  # of the last step, the picture itself comes
                        yield await self._partial(news)
                elif isinstance(news.outcome, Exception):
                    errors.append(news)
                else:
                    yield await self._completed(news, news.outcome)
        except Exception as error:  # the status is sent: it can only be told in the stream
            yield _error(error)
        for failed in errors:
            assert isinstance(failed.outcome, Exception)
            yield _error(failed.outcome, index=failed.index)

    def _queued(self, turn: Turn) -> bytes:
        height, width = self._handle.shape[-2:]
        facts = self._drawing.facts(self._manifest, f"{width}x{height}")
        return _event(QUEUED, ahead=turn.ahead, wait_s=round(turn.wait_s, 3), n=self._handle.n, **facts)

    def _heartbeat(self) -> bytes:
        turn = self._engine.turn(self._handle)
        return UNDER_WAY if turn is None else self._queued(turn)

    async def _partial(self, preview: Preview) -> bytes:
        number = self._previews[preview.index]
        self._previews[preview.index] += 1
        return _event(
            PARTIAL,
            index=preview.index,
            partial_image_index=number,
            step=preview.step + 1,
            steps=preview.steps,
            t=preview.t,
            size=size_of(preview.x0),
            output_format=self._drawing.request.output_format,
            b64_json=await self._encoded(preview.x0),
        )

    async def _completed(self, settled: Settled, image: Array) -> bytes:
        facts = self._drawing.facts(self._manifest, size_of(image))
        steps = len(self._drawing.arguments["plan"])
        return _event(COMPLETED, index=settled.index, step=steps, **facts, b64_json=await self._encoded(image))

    async def _encoded(self, image: Array) -> str:
        (file,) = await asyncio.to_thread(encoded, image[None], self._drawing.request.output_format, self._manifest)
        return file


def _event(kind: str, **data: Any) -> bytes:
    body = json.dumps({"type": kind, "created_at": int(time.time()), **data})
    return f"event: {kind}\ndata: {body}\n\n".encode()


def _error(error: Exception, **data: Any) -> bytes:
    return _event(ERROR, **data, **problem_of(error).body)
