"""A run of our own trainer."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

from ddpm_deploy.bundle import Condition
from ddpm_deploy.encoder import TOKENS
from ddpm_deploy.errors import ExportError, TrainingError
from ddpm_deploy.export.encoder import Encoder
from ddpm_deploy.export.sources.base import Settings, Source
from ddpm_deploy.model import TextToImage
from ddpm_deploy.train.runs import Run, load_run

USES = ("sample_shape", "variance", "clip", "output", "conditions", "step")


def read_run(path: Path, settings: Settings) -> Source:
    """The averaged weights of a checkpoint, the newest unless `settings.step` names another."""
    settings.require_only(USES, "a run of our trainer")
    try:
        source = source_of(load_run(path, step=settings.step))
    except TrainingError as error:
        raise ExportError(str(error)) from error
    return replace(
        source,
        sample_shape=settings.shape_or(source.sample_shape),
        variance=settings.variance or source.variance,
        clip=settings.clip_or(source.clip),
        output=settings.output_or(source.output),
        conditions=settings.conditions_or(source.conditions),
    )


def source_of(run: Run) -> Source:
    """The run as a source; a text encoder that was trained with the denoiser becomes a graph of its own."""
    source = Source(**{each.name: getattr(run, each.name) for each in fields(Source) if hasattr(run, each.name)})
    network = source.network
    if not isinstance(network, TextToImage):
        return source
    config = network.encoder.config
    tokens = Condition(TOKENS, (config.length,), "int64")
    text = Condition("text", (config.length, config.channels), "float32", null=0.0)
    pooled = Condition("pooled", (config.pooled_channels,), "float32", null=0.0)
    return replace(
        source,
        network=network.denoiser,
        spec=network.denoiser.spec(),
        conditions=(text, pooled),
        encoder=Encoder(network.encoder, (tokens,), (text.name, pooled.name), run.tokenizer),
    )
