"""A run of our own trainer."""

from __future__ import annotations

from pathlib import Path

from ddpm_deploy.errors import ExportError, TrainingError
from ddpm_deploy.export.sources.base import Settings, Source
from ddpm_deploy.train.runs import load_run

USES = ("sample_shape", "variance", "clip", "output", "conditions", "step")


def read_run(path: Path, settings: Settings) -> Source:
    """The averaged weights of a checkpoint, the newest unless `settings.step` names another."""
    settings.require_only(USES, "a run of our trainer")
    try:
        run = load_run(path, step=settings.step)
    except TrainingError as error:
        raise ExportError(str(error)) from error
    return Source(
        sample_shape=settings.shape_or(run.sample_shape),
        schedule=run.schedule,
        prediction=run.prediction,
        variance=settings.variance or run.variance,
        clip=settings.clip_or(run.clip),
        output=settings.output_or(run.output),
        conditions=settings.conditions_or(run.conditions),
        defaults=run.defaults,
        name=run.name,
        provenance=run.provenance,
        network=run.network,
        spec=run.spec,
    )
