"""Errors as clients of the HTTP service see them: a status, a message, and OpenAI's form."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ddpm_deploy.errors import BackendError, DdpmDeployError, DeadlineExceeded, EngineClosed, NonFiniteError, QueueFull
from ddpm_deploy.serve.generation import GenerationRequest

CLOSED_RETRY_AFTER_S = 1.0
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


@dataclass(frozen=True)
class Problem:
    """What went wrong, as far as the client is concerned. param: the field of the request that it is about."""

    status: int
    message: str
    headers: dict[str, str] = field(default_factory=dict)
    param: str | None = None

    @property
    def body(self) -> dict[str, Any]:
        """As OpenAI's API has it."""
        kind = "invalid_request_error" if 400 <= self.status < 500 and self.status != 429 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.status}}


def problem_of(error: Exception) -> Problem:
    """The problem that an error is to the client; what it cannot help is logged."""
    match error:
        case HTTPException():
            name = error.detail.partition(":")[0]
            param = name if error.status_code == 400 and name in GenerationRequest.model_fields else None
            return Problem(error.status_code, error.detail, dict(error.headers or {}), param)
        case QueueFull():
            return Problem(429, str(error), _retry_after(error.retry_after_s))
        case EngineClosed():
            headers = {**_retry_after(CLOSED_RETRY_AFTER_S), "Connection": "close"}  # to ask another process
            return Problem(503, str(error), headers)
        case DeadlineExceeded():
            return Problem(504, str(error))
    known = isinstance(error, BackendError | NonFiniteError)
    logger.error("serve: a request failed: %s", error, exc_info=None if known else error)
    return Problem(500, "the service failed to draw this; see its log")


def answer_problems(app: FastAPI) -> None:
    """Let the application answer errors that are expected in OpenAI's form."""

    async def answer(_: Request, error: Exception) -> JSONResponse:  # not to wait for a thread
        problem = problem_of(error)
        return JSONResponse(problem.body, problem.status, problem.headers)

    for kind in (HTTPException, DdpmDeployError):
        app.add_exception_handler(kind, answer)


def _retry_after(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(math.ceil(seconds))}
