"""Export: a trained network in, a verified bundle out."""

from __future__ import annotations

import copy
import importlib.metadata
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import safetensors.torch
from torch import nn
from tqdm import tqdm

from ddpm_deploy import __version__
from ddpm_deploy.backends.onnxruntime import OnnxRuntimeBackend
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
    write_bundle,
)
from ddpm_deploy.export.gate import BATCHES, Evaluate, compare, make_reference, torch_evaluate
from ddpm_deploy.export.graph import (
    TRACE_BATCH,
    Denoiser,
    check_graph,
    input_specs,
    output_spec,
    serialise,
    trace,
)
from ddpm_deploy.export.options import Options
from ddpm_deploy.job import example_conditions
from ddpm_deploy.model import build_network
from ddpm_deploy.reference import REFERENCE_NAME, write_reference
from ddpm_deploy.schedule import NoiseSchedule

GRAPH_NAME = "denoiser.fp32.onnx"
WEIGHTS_NAME = "denoiser.fp32.torch.safetensors"
DEFAULT_SOLVER = ("unipc", 12, "trailing")


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
    from ddpm_deploy.train.runs import load_run

    found = load_run(run, step=step, network=network)
    return export_module(
        found.network,
        out,
        sample_shape=found.sample_shape,
        schedule=found.schedule,
        prediction=found.prediction,
        variance=found.variance,
        clip=found.clip,
        output=found.output,
        conditions=found.conditions,
        defaults=found.defaults,
        spec=found.spec,
        name=name or found.name,
        model_version=model_version,
        licence=licence,
        provenance=found.provenance,
        options=options,
    )


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
    classes in turn, zeros, noise) would be no valid input. Other arguments as in `bundle.Manifest`.
    Raises ParityError over budget, and then `out` is as it was.
    """
    solver, steps, spacing = DEFAULT_SOLVER
    manifest = Manifest(
        model=ModelInfo(name, model_version, licence, dict(provenance or {}) | {"exporter": _exporter()}),
        sample_shape=tuple(sample_shape),
        output=output,
        prediction=prediction,
        variance=variance,
        schedule=schedule,
        clip=clip,
        conditions=tuple(conditions),
        defaults=defaults or Defaults(solver, min(steps, schedule.T), spacing),
        network=spec,
        files=(),
        reference=DataFile(REFERENCE_NAME),
    )
    check_target(out)
    network = _frozen(module, conditions)
    _check_spec(network, spec)
    return _export(network, manifest, out, example, options or Options())


def _export(
    network: Denoiser,
    manifest: Manifest,
    out: str | os.PathLike[str],
    example: Mapping[str, np.ndarray] | None,
    options: Options,
) -> Bundle:
    timesteps = min(options.parity_timesteps or manifest.schedule.T, manifest.schedule.T)
    conditions = _conditions(manifest, example)
    with tqdm(total=timesteps + 3, desc="graph", disable=None if options.progress else True) as bar:
        graph, file = _graph(network, manifest, conditions, options.opset)
        bar.update()
        bar.set_description("parity")
        reference = torch_evaluate(network)
        with _onnxruntime(graph, file) as candidate:
            figures = compare(reference, candidate, manifest, conditions, timesteps, bar.update)
        figures.require(options.max_relative_error, file.path)
        bar.set_description("reference")
        record = make_reference(reference, manifest, figures.kept, conditions)
        bar.update()
        bar.set_description("write")
        bundle = _write(
            network, manifest, out, graph, replace(file, parity=figures.as_parity()), write_reference(record)
        )
        bar.update()
    return bundle


def _frozen(module: nn.Module, conditions: Sequence[Condition]) -> Denoiser:
    """A float32 copy on the CPU, in eval mode."""
    network = copy.deepcopy(module).cpu().float().eval().requires_grad_(False)
    return Denoiser(network, conditions).eval()


def _check_spec(network: Denoiser, spec: Mapping[str, Any] | None) -> None:
    """Raise ValueError where the torch backend could not build the module from `spec`."""
    if spec is None:
        return
    try:
        build_network(spec).load_state_dict(network.network.state_dict())
    except RuntimeError as error:
        raise ValueError(f"spec: builds another network than the one given: {error}") from error


def _conditions(manifest: Manifest, example: Mapping[str, np.ndarray] | None) -> dict[str, np.ndarray]:
    """Values to steer with, `BATCHES[0]` of each condition, in the manifest's order."""
    guessed = example_conditions(manifest.conditions, BATCHES[0])
    given = dict(example or {})
    if set(given) - set(guessed):
        raise ValueError(f"example: got {sorted(given)}, expected only {sorted(guessed)}")
    for condition in manifest.conditions:
        array, shape = given.get(condition.name, guessed[condition.name]), (BATCHES[0], *condition.shape)
        if array.shape != shape or array.dtype != condition.dtype:
            raise ValueError(
                f"example[{condition.name!r}]: got {array.dtype} {array.shape}, expected {condition.dtype} {shape}"
            )
    return guessed | given


def _graph(
    network: Denoiser, manifest: Manifest, conditions: Mapping[str, np.ndarray], opset: int
) -> tuple[onnx.ModelProto, ModelFile]:
    inputs = input_specs(manifest.sample_shape, manifest.conditions)
    output = output_spec(manifest.sample_shape, manifest.variance == "learned")
    x = np.zeros((TRACE_BATCH, *manifest.sample_shape), np.float32)
    feeds = {"x": x, "t": np.zeros(TRACE_BATCH, np.float32)}
    feeds |= {name: array[:TRACE_BATCH] for name, array in conditions.items()}
    graph = trace(network, feeds, opset)
    check_graph(graph, inputs, output)
    return graph, ModelFile(GRAPH_NAME, "denoiser", "fp32", "onnx", opset, inputs, (output,))


@contextmanager
def _onnxruntime(graph: onnx.ModelProto, file: ModelFile) -> Iterator[Evaluate]:
    with OnnxRuntimeBackend.from_bytes(graph.SerializeToString(), file.inputs, file.outputs) as backend:
        yield lambda feeds: backend.run(feeds)[file.outputs[0].name]


def _write(
    network: Denoiser,
    manifest: Manifest,
    out: str | os.PathLike[str],
    graph: onnx.ModelProto,
    file: ModelFile,
    reference: bytes,
) -> Bundle:
    contents = {file.path: serialise(graph, to_metadata(manifest, file)), REFERENCE_NAME: reference}
    files = [file]
    if manifest.network is not None:
        weights = {name: tensor.contiguous().clone() for name, tensor in network.network.state_dict().items()}
        contents[WEIGHTS_NAME] = safetensors.torch.save(weights)
        files.append(replace(file, path=WEIGHTS_NAME, target="torch", opset=None, parity=None))
    return write_bundle(out, replace(manifest, files=tuple(files)), contents)


def _exporter() -> dict[str, str]:
    versions = {package: importlib.metadata.version(package) for package in ("torch", "onnx", "onnxscript")}
    return {"ddpm-deploy": __version__} | versions
