"""Export: a trained network in, a verified bundle out."""

from __future__ import annotations

import copy
import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ddpm_deploy import __version__
from ddpm_deploy.bundle import (
    Bundle,
    Condition,
    DataFile,
    Defaults,
    Manifest,
    ModelFile,
    ModelInfo,
    OutputAffine,
    check_target,
    to_metadata,
)
from ddpm_deploy.errors import ExportError
from ddpm_deploy.export.anatomy import opset_of
from ddpm_deploy.export.encoder import Encoder, trace_encoder
from ddpm_deploy.export.graph import TRACE_BATCH, Denoiser
from ddpm_deploy.export.options import Options
from ddpm_deploy.export.pipeline import Exported, export
from ddpm_deploy.export.recipe import EncoderSource, Recipe
from ddpm_deploy.export.sources.base import Source, default_solver
from ddpm_deploy.export.sources.module import call_factory
from ddpm_deploy.export.sources.onnx_load import load_onnx
from ddpm_deploy.export.sources.open import open_source
from ddpm_deploy.export.sources.said import make_conditions
from ddpm_deploy.export.targets import BASE
from ddpm_deploy.job import example_conditions
from ddpm_deploy.model import build_network
from ddpm_deploy.reference import REFERENCE_NAME
from ddpm_deploy.schedule import NoiseSchedule
from ddpm_deploy.tokenizer import Tokenizer


def export_run(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    step: int | None = None,
    network: nn.Module | None = None,
    name: str | None = None,
    model_version: str = "1",
    licence: str = "unspecified",
    options: Options | None = None,
) -> Bundle:
    """Export the averaged weights of a training run.

    step: of which checkpoint, None for the newest. network: see `train.runs.load_run`. name: None keeps the run's.
    Raises ParityError over budget, and then `out` is as it was.
    """
    from ddpm_deploy.export.sources.run import source_of
    from ddpm_deploy.train.runs import load_run

    source = source_of(load_run(run, step=step, network=network))
    return export_source(source, out, name=name, model_version=model_version, licence=licence, options=options).bundle


def export_module(
    module: nn.Module,
    out: str | os.PathLike[str],
    *,
    sample_shape: Sequence[int],
    schedule: NoiseSchedule,
    output: OutputAffine,
    prediction: str = "eps",
    variance: str = "small",
    clip: tuple[float, float] | None = None,
    conditions: Sequence[Condition] = (),
    example: Mapping[str, np.ndarray] | None = None,
    encoder: Encoder | None = None,
    defaults: Defaults | None = None,
    spec: Mapping[str, Any] | None = None,
    name: str = "model",
    model_version: str = "1",
    licence: str = "unspecified",
    provenance: Mapping[str, Any] | None = None,
    options: Options | None = None,
) -> Bundle:
    """Export any module with `forward(x (B, *S), t (B,), **conditions) -> (B, *S)`; the module is left as it is.

    spec: how `model.build_network` makes the module, so that the torch backend can run the bundle; None leaves the
    torch file out. example: values of the conditions to check parity with, (7, ...) each, where the own guess (all
    classes in turn, zeros, noise) would be no valid input. encoder: what computes a condition, once per request.
    Other arguments as in `bundle.Manifest`. Raises ParityError over budget, and then `out` is as it was.
    """
    source = Source(
        sample_shape=tuple(sample_shape),
        schedule=schedule,
        prediction=prediction,
        variance=variance,
        clip=clip,
        output=output,
        conditions=tuple(conditions),
        defaults=defaults or default_solver(schedule),
        name=name,
        provenance=dict(provenance or {}),
        network=module,
        spec=spec,
    )
    return export_source(
        source, out, model_version=model_version, licence=licence, example=example, encoder=encoder, options=options
    ).bundle


def export_recipe(recipe: Recipe, out: str | os.PathLike[str]) -> Exported:
    """Carry a recipe out; its path has to be set."""
    if recipe.path is None:
        raise ValueError("path: got none, expected the model to export")
    source = open_source(recipe.path, recipe.source)
    asked: dict[str, Any] = {key: value for key, value in vars(recipe.plan).items() if value not in (None, {})}
    if asked.get("solver", source.defaults.solver) != source.defaults.solver:
        asked.setdefault("options", {})  # the source's are of its own solver
    return export_source(
        source,
        out,
        name=recipe.model.name,
        model_version=recipe.model.version,
        licence=recipe.model.licence,
        defaults=replace(source.defaults, **asked),
        encoder=None if recipe.encoder is None else _encoder(recipe.encoder),
        options=recipe.export,
    )


def export_source(
    source: Source,
    out: str | os.PathLike[str],
    *,
    name: str | None = None,
    model_version: str = "1",
    licence: str = "unspecified",
    defaults: Defaults | None = None,
    example: Mapping[str, np.ndarray] | None = None,
    encoder: Encoder | None = None,
    options: Options | None = None,
) -> Exported:
    """Export what `sources.open_source` read; the bundle comes with all that was measured.

    name, defaults: None keeps what the source says. Other arguments as in `export_module`.
    """
    options, encoder = options or Options(), encoder or source.encoder
    if source.graph is not None:
        written = opset_of(source.graph)
        if options.opset not in (None, written):
            raise ValueError(f"opset: got {options.opset}, but the graph given is of opset {written}; leave it out")
        options = replace(options, opset=written)
    manifest = Manifest(
        model=ModelInfo(name or source.name, model_version, licence, source.provenance | {"exporter": _exporter()}),
        sample_shape=source.sample_shape,
        output=source.output,
        prediction=source.prediction,
        variance=source.variance,
        schedule=source.schedule,
        clip=source.clip,
        conditions=source.conditions,
        tokenizer=None if encoder is None else encoder.tokenizer,
        defaults=defaults or source.defaults,
        network=source.spec,
        files=(),
        reference=DataFile(REFERENCE_NAME),
    )
    check_target(out)
    _check_manifest(manifest)
    denoiser = source.graph if source.network is None else _frozen(source.network, source.conditions)
    assert denoiser is not None
    _check_spec(denoiser, source.spec)
    count = max(*options.batches, TRACE_BATCH)
    traced = None if encoder is None else trace_encoder(encoder, source.conditions, count)
    if traced is not None and manifest.tokenizer is not None:  # what real prompts give is a better example than a guess
        example = {**traced.truth, **(example or {})}
    return export(denoiser, manifest, out, _conditions(manifest, example, count), options, traced)


def _check_manifest(manifest: Manifest) -> None:
    """Raise BundleError for what the bundle would refuse, before the long work."""
    to_metadata(manifest, ModelFile(BASE.path, BASE.role, BASE.precision, BASE.target, BASE.opset, (), ()))


def _encoder(asked: EncoderSource) -> Encoder:
    path, made = Path(asked.path), None
    if path.suffix == ".onnx":
        if asked.options:
            raise ExportError(f"encoder: options: of no use to {asked.path}, which is no factory; leave them out")
        made = load_onnx(path)
    else:
        made = call_factory(asked.path, asked.options)
        if not isinstance(made, nn.Module):
            raise ExportError(f"encoder: {asked.path}: got a {type(made).__name__}, expected an nn.Module")
    inputs, tokenizer = make_conditions(asked.inputs, "encoder: inputs"), asked.tokenizer
    return Encoder(made, inputs, asked.condition, None if tokenizer is None else Tokenizer.from_dict(tokenizer))


def _frozen(module: nn.Module, conditions: Sequence[Condition]) -> Denoiser:
    """A float32 copy on the CPU, in eval mode."""
    network = copy.deepcopy(module).cpu().float().eval().requires_grad_(False)
    return Denoiser(network, conditions).eval()


def _check_spec(denoiser: Any, spec: Mapping[str, Any] | None) -> None:
    """Raise ValueError where the torch backend could not build the module from `spec`."""
    if spec is None:
        return
    try:
        build_network(spec).load_state_dict(denoiser.network.state_dict())
    except RuntimeError as error:
        raise ValueError(f"spec: builds another network than the one given: {error}") from error


def _conditions(manifest: Manifest, example: Mapping[str, np.ndarray] | None, count: int) -> dict[str, np.ndarray]:
    """Values to steer with, `count` of each condition, in the manifest's order; given ones are repeated in turn."""
    guessed = example_conditions(manifest.conditions, count)
    given = dict(example or {})
    if set(given) - set(guessed):
        raise ValueError(f"example: got {sorted(given)}, expected only {sorted(guessed)}")
    for condition in manifest.conditions:
        array = given.get(condition.name, guessed[condition.name])
        if array.ndim == 0 or not len(array) or array.shape[1:] != condition.shape or array.dtype != condition.dtype:
            raise ValueError(
                f"example[{condition.name!r}]: got {array.dtype} {array.shape}, expected {condition.dtype} "
                f"{('n', *condition.shape)}"
            )
    return guessed | {name: array[np.arange(count) % len(array)] for name, array in given.items()}


def _exporter() -> dict[str, str]:
    versions = {package: importlib.metadata.version(package) for package in ("torch", "onnx", "onnxscript")}
    return {"ddpm-deploy": __version__} | versions
