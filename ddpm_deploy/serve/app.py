"""The HTTP service around an engine; `python -m ddpm_deploy.serve` runs it."""

from __future__ import annotations

import asyncio
import hmac
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ddpm_deploy.errors import EngineClosed
from ddpm_deploy.images import is_picture
from ddpm_deploy.serve.engine import Engine
from ddpm_deploy.serve.generation import (
    PATH,
    Drawing,
    GenerationRequest,
    GenerationResponse,
    drawing,
    parsed,
    response,
)
from ddpm_deploy.serve.handle import Array, Handle
from ddpm_deploy.serve.journal import Journal, Note
from ddpm_deploy.serve.limits import Limits
from ddpm_deploy.serve.metrics import Metrics
from ddpm_deploy.serve.models import ServedModel, ServedModels, served
from ddpm_deploy.serve.page import add_page
from ddpm_deploy.serve.pictures import npy
from ddpm_deploy.serve.problems import ERRORS, answer_problems
from ddpm_deploy.serve.stream import EVENT, EventStream
from ddpm_deploy.serve.tracing import Tracing

NPY = "application/x-npy"
SOON_STEPS = 64  # a plan that is compiled within a few milliseconds
SOON_PIXELS = 4096
BODY = {"requestBody": {"content": {"application/json": {"schema": GenerationRequest.model_json_schema()}}}}
DRAWN: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The pictures, or with `stream` the events of their making.",
        "content": {
            "text/event-stream": {"schema": EVENT},
            NPY: {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
logger = logging.getLogger(__name__)


class Service:
    """The state of the application: the engine, and whether it is warm. The engine's owner closes it.

    failure: what the warm-up failed with, of which `when_failed` is told.
    """

    def __init__(self, engine: Engine, limits: Limits, token: str | None) -> None:
        self.engine, self.limits, self._token = engine, limits, token
        self.sampler = engine.samplers[0]
        self.warm = False
        self.failure: Exception | None = None
        self.when_failed: Callable[[], object] = lambda: None
        self.metrics = Metrics(engine, lambda: self.ready)

    @property
    def ready(self) -> bool:
        return self.warm and self.engine.accepting

    @property
    def healthy(self) -> bool:
        return self.engine.alive and self.failure is None

    def warm_up(self) -> None:
        """Evaluate the network, then be ready; where that fails, never."""
        try:
            self.engine.warmup()
        except Exception as error:
            if self.engine.accepting:  # and not on its way out
                logger.exception("serve: the warm-up failed, the service will not be ready")
                self.failure = error
                self.when_failed()
        else:
            self.warm = True

    async def generate(self, request: Request) -> Response:
        """One request, which was admitted, from its bytes to its pictures."""
        self.check_token(request.headers)  # again, whatever the paths that lead here
        body = await self._body(request)
        self._check_room()
        asked = _parsed(body)
        submit = partial(self._submitted, asked)
        wanted, handle = submit() if self._is_soon_submitted(asked) else await asyncio.to_thread(submit)
        self.metrics.accepted(handle)
        note: Note = request.state.note
        note.drawing, note.handle = wanted, handle
        if wanted.request.stream:
            return EventStream(self.engine, handle, wanted)
        samples = await _drawn(handle, request)
        answer = partial(self._answer, samples, wanted)
        return answer() if _is_soon_encoded(samples) else await asyncio.to_thread(answer)

    def admit(self, headers: Headers) -> None:
        """Refuse a request for pictures before anything of it but its head is looked at."""
        self.check_token(headers)
        self._check_room()

    def _check_room(self) -> None:
        if not self.ready:
            raise EngineClosed("the service is warming up or draining")
        self.engine.check_room()

    def _is_soon_submitted(self, asked: GenerationRequest) -> bool:
        """Whether a thread would take longer to begin with it: no text to encode, and not many rows to compile."""
        reads = self.sampler.manifest.tokenizer is not None and asked.prompt
        usual = None if asked.solver else self.sampler.manifest.defaults.steps
        return not reads and (asked.steps or usual or self.limits.max_steps) <= SOON_STEPS

    def _submitted(self, asked: GenerationRequest) -> tuple[Drawing, Handle]:
        """Hand a request to the engine; what is wrong with it is status 400."""
        with _status_400():
            wanted = drawing(asked, self.sampler, self.limits)
            return wanted, self.engine.submit(**wanted.arguments)

    def _answer(self, samples: Array, wanted: Drawing) -> Response:
        if wanted.request.response_format == "npy":
            return Response(npy(samples), media_type=NPY, headers={"X-Seed": str(wanted.arguments["seed"])})
        return JSONResponse(response(samples, wanted, self.sampler.manifest).model_dump())

    def check_token(self, headers: Headers) -> None:
        """Status 401 unless the client may ask."""
        if self._token is None:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token.encode()):
            raise HTTPException(401, "the bearer token is missing or wrong", {"WWW-Authenticate": "Bearer"})

    async def _body(self, request: Request) -> bytes:
        """The body, of which never more is read than the limit."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" or request.headers.get("content-encoding", "identity") != "identity":
            raise HTTPException(415, "body: expected the header Content-Type: application/json, no Content-Encoding")
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


def make_app(
    engine: Engine,
    limits: Limits | None = None,
    token: str | None = None,
    tracing: Tracing | None = None,
    *,
    warm: bool = False,
) -> FastAPI:
    """The application around an engine whose samples are pictures; ValueError where they are not.

    token: what clients must send as `Authorization: Bearer ...`, None for nothing. tracing: None for none.
    warm: whether the engine is warm already, and the application ready at once.
    """
    shape = engine.samplers[0].manifest.sample_shape
    if not is_picture(shape):
        raise ValueError(f"bundle: samples of shape {shape} are no pictures, which is all that this service sends")
    service = Service(engine, limits or Limits(), token)
    service.warm = warm

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if not service.warm:  # in a thread that the end of the process does not wait for
            threading.Thread(target=service.warm_up, name="warm-up", daemon=True).start()
        yield

    app = FastAPI(title="ddpm-deploy", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.service = service

    @app.post(PATH, response_model=GenerationResponse, responses=DRAWN | ERRORS, openapi_extra=BODY)
    async def generations(request: Request) -> Response:
        """Draw pictures."""
        return await service.generate(request)

    _add_models(app, service)
    _add_health(app, service)
    add_page(app)
    answer_problems(app)
    app.add_middleware(Journal, admit=service.admit, metrics=service.metrics, tracing=tracing)
    return app


def _add_models(app: FastAPI, service: Service) -> None:
    described = served(service.sampler.manifest, service.limits, int(time.time()))

    @app.get("/v1/models", responses={401: ERRORS[401]})
    async def models(request: Request) -> ServedModels:
        """The model served, and what may be asked of it."""
        service.check_token(request.headers)
        return ServedModels(data=[described])

    @app.get(
        "/v1/models/{name:path}", responses={401: ERRORS[401], 404: {"description": "Another model than that served."}}
    )
    async def model(request: Request, name: str) -> ServedModel:
        """What may be asked of the model served."""
        service.check_token(request.headers)
        if name != described.id:
            raise HTTPException(404, f"model: got {name!r}, expected {described.id!r}")
        return described


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", responses={503: {"description": "The warm-up or every device has failed."}})
    async def healthz() -> JSONResponse:
        """Whether the process is of any use."""
        return JSONResponse({"healthy": service.healthy}, 200 if service.healthy else 503)

    @app.get("/readyz", responses={503: {"description": "Warming up, draining, or every device has failed."}})
    async def readyz() -> JSONResponse:
        """Whether it takes requests."""
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> PlainTextResponse:
        """Counters for Prometheus."""
        return PlainTextResponse(service.metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


async def _drawn(handle: Handle, request: Request) -> Array:
    """The samples; ClientDisconnect where the client went away, which cancels the request."""
    drawn = handle.in_loop()
    gone = asyncio.create_task(_cancel_when_gone(drawn, request))
    try:
        return await drawn
    except asyncio.CancelledError:
        if gone.done():
            raise ClientDisconnect from None
        raise
    finally:
        gone.cancel()


async def _cancel_when_gone(drawn: asyncio.Future[Array], request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    drawn.cancel()


def _parsed(body: bytes) -> GenerationRequest:
    with _status_400():
        return parsed(body)


def _is_soon_encoded(samples: Array) -> bool:
    """Whether a thread would take longer to begin with the files."""
    return len(samples) * samples.shape[-1] * samples.shape[-2] <= SOON_PIXELS


@contextmanager
def _status_400() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise HTTPException(400, str(error)) from None
