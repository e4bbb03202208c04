"""`POST /v1/images/generations`: what a client sends, checked against the model, and what it gets."""

from __future__ import annotations

import difflib
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from ddpm_deploy.bundle import Manifest
from ddpm_deploy.labels import labels_of
from ddpm_deploy.sampler import Sampler
from ddpm_deploy.serve.handle import Array
from ddpm_deploy.serve.limits import Limits
from ddpm_deploy.serve.pictures import encoded, size_of
from ddpm_deploy.solvers import SOLVERS

PATH = "/v1/images/generations"
RANDOM_SEED_BITS = 53  # what every JSON reader keeps exactly
MAX_GUIDANCE = 100
SIZE_PATTERN = r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$"


class GenerationRequest(BaseModel):
    """The body of a request: the fields of OpenAI's images API that mean something here, and a sampler's own."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str = Field("", max_length=1000, description="What to draw; the label, where the model reads no text.")
    label: Annotated[str, Field(max_length=1000)] | Annotated[int, Field(ge=0)] | None = Field(
        None, description="A class by name or number; several, with commas."
    )
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
    output_format: Literal["png", "jpeg"] = "png"
    response_format: Literal["b64_json", "npy"] = Field(
        "b64_json", description="npy: the float32 samples (n, C, H, W) in network range, as a file of numpy."
    )
    stream: bool = Field(False, description="Answer with server-sent events.")
    partial_images: Annotated[int, Field(ge=0, le=1000)] | None = Field(
        None, description="In a stream: at most so many previews of each picture."
    )
    preview_every: Annotated[int, Field(ge=1)] | None = Field(
        None, description="In a stream: a preview each so many steps; instead of partial_images."
    )


class Picture(BaseModel):
    """A file of the output format, in base64."""

    b64_json: str


class GenerationResponse(BaseModel):
    """The pictures, and what draws them again."""

    created: int
    data: list[Picture]
    model: str
    size: str
    output_format: Literal["png", "jpeg"]
    seed: int
    solver: str
    steps: int


@dataclass(frozen=True)
class Drawing:
    """A request that may be drawn. arguments: of `Engine.submit`."""

    request: GenerationRequest
    arguments: dict[str, Any]

    def facts(self, manifest: Manifest, size: str) -> dict[str, Any]:
        """What draws the same pictures again."""
        plan = self.arguments["plan"]
        return {
            "model": manifest.model.name,
            "size": size,
            "output_format": self.request.output_format,
            "seed": self.arguments["seed"],
            "solver": plan.solver,
            "steps": plan.nfe,
        }


def parsed(body: bytes) -> GenerationRequest:
    """The request in a body; ValueError names the first field at fault, and does not repeat what was sent."""
    try:
        return GenerationRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = str(first["loc"][0]) if first["loc"] else "body"
        raise ValueError(
            f"{where}: {_unknown(where) if first['type'] == 'extra_forbidden' else first['msg']}"
        ) from None


def _unknown(name: str) -> str:
    fields = GenerationRequest.model_fields
    near = difflib.get_close_matches(name, fields, 1, 0.7)
    return f"there is no such field; {f'did you mean {near[0]}?' if near else 'known are ' + ', '.join(fields)}"


def drawing(request: GenerationRequest, sampler: Sampler, limits: Limits) -> Drawing:
    """What to submit; ValueError for what the model cannot do, the limits do not allow, or contradicts itself."""
    manifest = sampler.manifest
    _check_answer(request, manifest)
    if request.model not in (None, manifest.model.name):
        raise ValueError(f"model: got {request.model!r}, expected {manifest.model.name!r}")
    if request.n > limits.max_n:
        raise ValueError(f"n: got {request.n}, expected at most {limits.max_n}")
    if (request.steps or 1) > limits.max_steps:
        raise ValueError(f"steps: got {request.steps}, expected at most {limits.max_steps}")
    plan = sampler.plan(request.solver, request.steps)
    if plan.nfe > limits.max_steps:
        raise ValueError(f"steps: {plan.solver} takes {plan.nfe} evaluations, expected at most {limits.max_steps}")
    size = _size(request.size, limits.pixels(manifest.sample_shape))
    _check_work(request.n, size or manifest.sample_shape[1:], plan.nfe, limits.max_work)
    arguments = {
        "n": request.n,
        "plan": plan,
        "seed": secrets.randbits(RANDOM_SEED_BITS) if request.seed is None else request.seed,
        "size": size,
        **_steering(request, manifest),
        "guidance": request.guidance,
        "deadline_s": min(request.deadline_s or limits.deadline_s, limits.deadline_s),
        "preview_every": _preview_every(request, len(plan)),
    }
    return Drawing(request, arguments)


def response(samples: Array, drawn: Drawing, manifest: Manifest) -> GenerationResponse:
    """Pictures of samples (n, C, H, W) in network range."""
    return GenerationResponse(
        created=int(time.time()),
        data=[Picture(b64_json=each) for each in encoded(samples, drawn.request.output_format, manifest)],
        **drawn.facts(manifest, size_of(samples)),
    )


def _check_answer(request: GenerationRequest, manifest: Manifest) -> None:
    """ValueError for an answer that cannot be had."""
    if request.output_format == "jpeg" and manifest.sample_shape[0] == 4:
        raise ValueError("output_format: got 'jpeg', which has no transparency; expected 'png'")
    if request.response_format == "npy":
        for name in {"stream", "output_format"} & request.model_fields_set:
            if getattr(request, name):
                raise ValueError(f"{name}: given together with response_format npy; give one of the two")
    if request.partial_images is not None and request.preview_every is not None:
        raise ValueError("preview_every: given together with partial_images; give one of the two")
    for name in ("partial_images", "preview_every"):
        if getattr(request, name) and not request.stream:
            raise ValueError(f"{name}: got {getattr(request, name)}, but stream is false; previews come in a stream")


def _check_work(n: int, size: Sequence[int], evaluations: int, most: int) -> None:
    height, width = size
    work = n * height * width * evaluations
    if work > most:
        asked = f"{n} of {width}x{height} pixels in {evaluations} evaluations is {work}"
        raise ValueError(f"n: {asked}, expected at most {most} in all; ask for fewer, smaller, or with fewer steps")


def _preview_every(request: GenerationRequest, rows: int) -> int:
    """How many steps from one preview to the next, 0 for none."""
    if request.partial_images:
        return -(-rows // (request.partial_images + 1))
    return request.preview_every or 0


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
    label = None if request.label is None else str(request.label)
    if manifest.tokenizer is not None and request.prompt:
        labels = {} if label is None else dict([labels_of(label, manifest, request.n)])
        return {"prompt": request.prompt, "condition": labels}
    if label is not None and request.prompt:
        raise ValueError("label: given together with prompt, which is the label here; give one of the two")
    text = label if label is not None else request.prompt or None
    return {} if text is None else {"condition": dict([labels_of(text, manifest, request.n)])}
