"""`POST /v1/images/generations`: what a client sends, checked against the model, and what it gets."""

from __future__ import annotations

import base64
import io
import secrets
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from ddpm_deploy.bundle import Manifest
from ddpm_deploy.images import NETWORK_RANGE, to_pil
from ddpm_deploy.labels import labels_of
from ddpm_deploy.plan import Plan
from ddpm_deploy.sampler import Sampler
from ddpm_deploy.serve.handle import Array
from ddpm_deploy.serve.limits import Limits
from ddpm_deploy.solvers import SOLVERS

RANDOM_SEED_BITS = 53  # what every JSON reader keeps exactly
MAX_GUIDANCE = 100
SIZE_PATTERN = r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$"


class GenerationRequest(BaseModel):
    """The body of a request: the fields of OpenAI's images API that mean something here, and a sampler's own."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str = Field("", max_length=1000, description="What to draw; the label, where the model reads no text.")
    label: str | None = Field(None, max_length=1000, description="A class by name or number; several, with commas.")
    model: str | None = Field(None, max_length=200, description="The name of the model served.")
    n: int = Field(1, ge=1, description="How many pictures.")
    size: str | None = Field(None, pattern=SIZE_PATTERN, description="WIDTHxHEIGHT, or auto.")
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = Field(None, description="None is a random one.")
    steps: Annotated[int, Field(ge=1)] | None = Field(None, description="None is the model's default.")
    solver: str | None = Field(None, max_length=40, description=f"One of {', '.join(SOLVERS)}.")
    guidance: FiniteFloat = Field(
        1.0, ge=-MAX_GUIDANCE, le=MAX_GUIDANCE, description="How far to exaggerate the label; 1 is as it is."
    )
    deadline_s: Annotated[FiniteFloat, Field(gt=0)] | None = Field(None, description="Fail after so many seconds.")
    response_format: Literal["b64_json"] = "b64_json"


class Picture(BaseModel):
    """A PNG."""

    b64_json: str


class GenerationResponse(BaseModel):
    """The pictures, and what draws them again."""

    created: int
    data: list[Picture]
    model: str
    size: str
    output_format: Literal["png"] = "png"
    seed: int
    solver: str
    steps: int


def parsed(body: bytes) -> GenerationRequest:
    """The request in a body; ValueError names the first field at fault, and does not repeat what was sent."""
    try:
        return GenerationRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise ValueError(f"{where}: {first['msg']}") from None


def submission(request: GenerationRequest, sampler: Sampler, limits: Limits) -> dict[str, Any]:
    """The arguments of `Engine.submit`; ValueError for what the model cannot do or the limits do not allow."""
    manifest = sampler.manifest
    if request.model not in (None, manifest.model.name):
        raise ValueError(f"model: got {request.model!r}, expected {manifest.model.name!r}")
    if request.n > limits.max_n:
        raise ValueError(f"n: got {request.n}, expected at most {limits.max_n}")
    if (request.steps or 1) > limits.max_steps:
        raise ValueError(f"steps: got {request.steps}, expected at most {limits.max_steps}")
    plan = sampler.plan(request.solver, request.steps)
    if plan.nfe > limits.max_steps:
        raise ValueError(f"steps: {plan.solver} takes {plan.nfe} evaluations, expected at most {limits.max_steps}")
    return {
        "n": request.n,
        "plan": plan,
        "seed": secrets.randbits(RANDOM_SEED_BITS) if request.seed is None else request.seed,
        "size": _size(request.size, limits.max_pixels),
        **_steering(request, manifest),
        "guidance": request.guidance,
        "deadline_s": min(request.deadline_s or limits.deadline_s, limits.deadline_s),
    }


def response(samples: Array, plan: Plan, seed: int, manifest: Manifest) -> GenerationResponse:
    """PNGs of samples (n, C, H, W) in network range."""
    height, width = samples.shape[2:]
    return GenerationResponse(
        created=int(time.time()),
        data=[Picture(b64_json=_png(image)) for image in to_pil(samples, manifest.clip or NETWORK_RANGE)],
        model=manifest.model.name,
        size=f"{width}x{height}",
        seed=seed,
        solver=plan.solver,
        steps=plan.nfe,
    )


def _size(text: str | None, max_pixels: int) -> Sequence[int] | None:
    """(H, W) of `WIDTHxHEIGHT`."""
    if text in (None, "auto"):
        return None
    width, height = map(int, str(text).split("x"))
    if width * height > max_pixels:
        raise ValueError(f"size: got {text}, expected at most {max_pixels} pixels")
    return height, width


def _steering(request: GenerationRequest, manifest: Manifest) -> dict[str, Any]:
    """The prompt where the model reads text, or else the labels; an empty prompt is none."""
    if manifest.tokenizer is not None and request.prompt:
        labels = {} if request.label is None else dict([labels_of(request.label, manifest, request.n)])
        return {"prompt": request.prompt, "condition": labels}
    if request.label is not None and request.prompt:
        raise ValueError("label: given together with prompt, which is the label here; give one of the two")
    text = request.label if request.label is not None else request.prompt or None
    return {} if text is None else {"condition": dict([labels_of(text, manifest, request.n)])}


def _png(image: Any) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
