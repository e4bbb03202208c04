"""The HTTP service around an engine; `python -m ddpm_deploy.serve` runs it."""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ddpm_deploy.errors import BackendError, DeadlineExceeded, EngineClosed, NonFiniteError, QueueFull
from ddpm_deploy.images import is_picture
from ddpm_deploy.serve.engine import Engine
from ddpm_deploy.serve.generation import GenerationRequest, GenerationResponse, parsed, response, submission
from ddpm_deploy.serve.handle import Array, Handle
from ddpm_deploy.serve.limits import Limits

CLIENT_GONE = 499
CLOSED_RETRY_AFTER_S = 1.0
BODY = {"requestBody": {"content": {"application/json": {"schema": GenerationRequest.model_json_schema()}}}}
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "A field is wrong; the message names it."},
    401: {"description": "The bearer token is missing or wrong."},
    408: {"description": "The body took too long to arrive."},
    413: {"description": "The body is too large."},
    415: {"description": "The body is not plain JSON."},
    429: {"description": "Too much is waiting; Retry-After says when to ask again."},
    500: {"description": "The network failed, or predicted no numbers."},
    503: {"description": "Warming up or draining; Retry-After says when to ask again."},
    504: {"description": "Not finished by the deadline."},
}
logger = logging.getLogger(__name__)


class Service:
    """The state of the application: the engine, and whether it is warm. The engine's owner closes it."""

    def __init__(self, engine: Engine, limits: Limits, token: str | None) -> None:
        self.engine, self.limits, self._token = engine, limits, token
        self.sampler = engine.samplers[0]
        self.warm = False

    @property
    def ready(self) -> bool:
        return self.warm and self.engine.accepting

    async def warm_up(self) -> None:
        """Evaluate the network, then be ready; where that fails, never."""
        try:
            await asyncio.to_thread(self.engine.warmup)
        except Exception:
            logger.exception("serve: the warm-up failed, the service will not be ready")
        else:
            self.warm = True

    async def generate(self, request: Request) -> JSONResponse:
        """One request from its bytes to its pictures."""
        self._check_token(request)
        body = await self._body(request)
        if not self.ready:
            raise EngineClosed("the service is warming up or draining")
        arguments, handle = await asyncio.to_thread(self._submitted, body)
        samples = await _drawn(handle, request)
        if samples is None:
            raise ClientDisconnect
        manifest = self.sampler.manifest
        answer = await asyncio.to_thread(response, samples, arguments["plan"], arguments["seed"], manifest)
        return JSONResponse(answer.model_dump())

    def _submitted(self, body: bytes) -> tuple[dict[str, Any], Handle]:
        """Hand a request to the engine; what is wrong with it is status 400."""
        try:
            arguments = submission(parsed(body), self.sampler, self.limits)
            return arguments, self.engine.submit(**arguments)
        except ValueError as error:
            raise HTTPException(400, str(error)) from None

    def _check_token(self, request: Request) -> None:
        given = request.headers.get("authorization", "").encode()
        if self._token is not None and not hmac.compare_digest(given, f"Bearer {self._token}".encode()):
            raise HTTPException(401, "the bearer token is missing or wrong", {"WWW-Authenticate": "Bearer"})

    async def _body(self, request: Request) -> bytes:
        """The body, of which never more is read than the limit."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" or request.headers.get("content-encoding", "identity") != "identity":
            raise HTTPException(415, "expected content-type application/json without content-encoding")
        body, most = bytearray(), self.limits.max_body_bytes
        try:
            async with asyncio.timeout(self.limits.body_s):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > most:
                        raise HTTPException(413, f"body: expected at most {most} bytes", {"Connection": "close"})
        except TimeoutError:
            raise HTTPException(408, "body: took too long to arrive", {"Connection": "close"}) from None
        return bytes(body)


def make_app(engine: Engine, limits: Limits | None = None, token: str | None = None) -> FastAPI:
    """The application around an engine whose samples are pictures; ValueError where they are not.

    token: what clients must send as `Authorization: Bearer ...`, None for nothing.
    """
    shape = engine.samplers[0].manifest.sample_shape
    if not is_picture(shape):
        raise ValueError(f"bundle: samples of shape {shape} are no pictures, which is all that this service sends")
    service = Service(engine, limits or Limits(), token)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.create_task(service.warm_up())
        yield
        warming.cancel()

    app = FastAPI(title="ddpm-deploy", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.service = service

    @app.post("/v1/images/generations", response_model=GenerationResponse, responses=ERRORS, openapi_extra=BODY)
    async def generations(request: Request) -> JSONResponse:
        """Draw pictures."""
        return await service.generate(request)

    @app.get("/healthz", responses={503: {"description": "Every device has failed; only a restart helps."}})
    async def healthz() -> JSONResponse:
        """Whether the process is of any use."""
        return JSONResponse({"healthy": engine.alive}, 200 if engine.alive else 503)

    @app.get("/readyz", responses={503: {"description": "Warming up, draining, or every device has failed."}})
    async def readyz() -> JSONResponse:
        """Whether it takes requests."""
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    for kind, answer in HANDLERS.items():
        app.add_exception_handler(kind, answer)
    return app


async def _drawn(handle: Handle, request: Request) -> Array | None:
    """The samples, or None where the client went away, which cancels the request."""
    gone = asyncio.create_task(_disconnected(request))
    drawn = asyncio.ensure_future(_awaited(handle))
    try:
        await asyncio.wait({drawn, gone}, return_when=asyncio.FIRST_COMPLETED)
        return await drawn if drawn.done() else None
    finally:
        gone.cancel()
        drawn.cancel()


async def _awaited(handle: Handle) -> Array:
    return await handle


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error in OpenAI's form."""
    kind = "invalid_request_error" if 400 <= status < 500 and status != 429 else "server_error"
    body = {"error": {"message": message, "type": kind, "param": None, "code": status}}
    return JSONResponse(body, status, headers)


def _later(status: int, error: Exception, seconds: float) -> JSONResponse:
    return _error(status, str(error), {"Retry-After": str(math.ceil(seconds))})


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    logger.error("serve: %s failed: %s", request.url.path, error)
    return _error(500, "the service failed to draw this; see its log")


HANDLERS: dict[Any, Callable[[Request, Any], JSONResponse]] = {
    HTTPException: lambda _, error: _error(error.status_code, error.detail, error.headers),
    QueueFull: lambda _, error: _later(429, error, error.retry_after_s),
    EngineClosed: lambda _, error: _later(503, error, CLOSED_RETRY_AFTER_S),
    ClientDisconnect: lambda *_: _error(CLIENT_GONE, "the client went away"),
    DeadlineExceeded: lambda _, error: _error(504, str(error)),
    NonFiniteError: _unexpected,
    BackendError: _unexpected,
    Exception: _unexpected,
}
