"""`GET /v1/models`: OpenAI's list of models, here the one that is served, and what may be asked of it."""

from __future__ import annotations

from pydantic import BaseModel

from ddpm_deploy.bundle import Manifest
from ddpm_deploy.serve.limits import Limits
from ddpm_deploy.solvers import SOLVERS


class Default(BaseModel):
    """What a request gets that leaves it out."""

    solver: str
    steps: int


class Most(BaseModel):
    """What a request may ask for. pixels: of one picture, where its size is free. work: pixels x evaluations
    of all its pictures."""

    n: int
    steps: int
    pixels: int
    work: int
    deadline_s: float


class ServedModel(BaseModel):
    """The fields of OpenAI's API, and a sampler's own.

    created: when it was loaded, in seconds since 1970. size_multiple: of which width and height have to be multiples,
    None where they are fixed. classes: what `label` takes. words: that `prompt` was trained on, None where the model
    reads no text. guided: whether `guidance` may be other than 1. timesteps: of its training, the most that solvers of
    one evaluation a step can take.
    """

    id: str
    object: str = "model"
    created: int
    owned_by: str = "ddpm-deploy"
    version: str
    licence: str
    sample_shape: list[int]
    size: str
    size_multiple: int | None
    classes: list[str] | None
    words: list[str] | None
    guided: bool
    timesteps: int
    solvers: list[str]
    default: Default
    limits: Most


class ServedModels(BaseModel):
    """OpenAI's list."""

    object: str = "list"
    data: list[ServedModel]


def served(manifest: Manifest, limits: Limits, created: int) -> ServedModel:
    """The description of a bundle whose samples are pictures."""
    classes = [condition.classes for condition in manifest.conditions if condition.classes and not condition.shape]
    return ServedModel(
        id=manifest.model.name,
        created=created,
        version=manifest.model.version,
        licence=manifest.model.licence,
        sample_shape=list(manifest.sample_shape),
        size="{2}x{1}".format(*manifest.sample_shape),
        size_multiple=manifest.size_multiple,
        classes=list(classes[0]) if len(classes) == 1 else None,
        words=None if manifest.tokenizer is None else list(manifest.tokenizer.vocabulary),
        guided=manifest.guided,
        timesteps=manifest.schedule.T,
        solvers=list(SOLVERS),
        default=Default(solver=manifest.defaults.solver, steps=manifest.defaults.steps),
        limits=Most(
            n=limits.max_n,
            steps=limits.max_steps,
            pixels=limits.pixels(manifest.sample_shape),
            work=limits.max_work,
            deadline_s=limits.deadline_s,
        ),
    )
