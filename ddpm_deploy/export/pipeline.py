"""The work of an export: graphs are made, each is held against the reference, and only then is anything written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import safetensors.torch
from tqdm import tqdm

from ddpm_deploy.bundle import Bundle, DataFile, Manifest, ModelFile, to_metadata, write_bundle
from ddpm_deploy.errors import ExportError, ParityError
from ddpm_deploy.export.anatomy import opset_of
from ddpm_deploy.export.calibration import calibration_feeds
from ddpm_deploy.export.encoder import TracedEncoder
from ddpm_deploy.export.evaluate import evaluator
from ddpm_deploy.export.free_size import resized, with_free_size
from ddpm_deploy.export.gate import Gate, Verdict, reducible, worst
from ddpm_deploy.export.graph import Denoiser, serialise
from ddpm_deploy.export.graphs import Graphs
from ddpm_deploy.export.options import Options
from ddpm_deploy.export.quantise import quantise
from ddpm_deploy.export.record import make_reference, torch_evaluate
from ddpm_deploy.export.sensitivity import Layer, next_state_cost, quantise_within
from ddpm_deploy.export.targets import TARGETS, GraphFile
from ddpm_deploy.export.weights import SHARED_NAME, is_large, is_shared, share_weights
from ddpm_deploy.parity.next_state import Evaluate, Step, ddpm_plan, picture_range, short_plan, teacher_forced
from ddpm_deploy.reference import REFERENCE_NAME, write_reference

TORCH_NAME = "denoiser.fp32.torch.safetensors"
COST_STEPS = 6  # evaluations that a layer's cost is averaged over
RESIZED_TIMESTEPS = 20  # where the graphs are measured at a second size
JUDGED_TIMESTEPS = 20  # while int8 layers are chosen; the file itself is measured at all that are asked for

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Exported:
    """A bundle and what was measured. layers: of each int8 file what its layers cost, the worst first."""

    bundle: Bundle
    verdicts: Mapping[str, Verdict]
    layers: Mapping[str, tuple[Layer, ...]] = field(default_factory=dict)


def export(
    denoiser: Denoiser | onnx.ModelProto,
    manifest: Manifest,
    out: str | os.PathLike[str],
    conditions: Mapping[str, Array],
    options: Options,
    encoder: TracedEncoder | None = None,
) -> Exported:
    """Write the bundle; raises ParityError over budget, and then `out` is as it was.

    manifest: without files. conditions: example values, as many as the largest batch.
    """
    files = options.files()
    if options.free_size:
        manifest = _with_free_size(denoiser, manifest, conditions)
    with _reference(denoiser) as reference, _bar(files, manifest, options) as bar:
        work = _Work(denoiser, manifest, reference, conditions, options, bar.update)
        for file in files:
            bar.set_description(file.path.removesuffix(".onnx"))
            work.add(file)
        if encoder is not None:
            work.add_encoder(encoder)
        work.require_parity()
        bar.set_description("reference")
        record = write_reference(make_reference(reference, manifest, conditions))
        bar.set_description("write")
        bundle = _write(denoiser, manifest, out, options, work, record)
    return Exported(bundle, {file.path: verdict for file, verdict in work.verdicts}, work.layers)


class _Work:
    """The graphs made so far, and what was found about them."""

    def __init__(
        self,
        denoiser: Denoiser | onnx.ModelProto,
        manifest: Manifest,
        reference: Evaluate,
        conditions: Mapping[str, Array],
        options: Options,
        advance: Callable[[], object],
    ) -> None:
        self.graphs = Graphs(denoiser, manifest, conditions, options, self._quantise)
        self.gate = Gate(reference, manifest, conditions, options)
        self._resized = _resized_gate(self.gate)
        self._gated: set[tuple[str, str]] = set()
        self.models: dict[str, onnx.ModelProto] = {}
        self.verdicts: list[tuple[ModelFile, Verdict]] = []
        self.layers: dict[str, tuple[Layer, ...]] = {}
        self._options, self._advance = options, advance

    def add(self, file: GraphFile) -> None:
        """Make one graph and measure it."""
        denoiser = self.graphs.denoiser(file)
        record, model = self.graphs.record(file), self.graphs.around(denoiser, file)
        emulated = denoiser if file.role == "denoiser" else reducible(denoiser, file.precision)
        measured = model if emulated is denoiser else self.graphs.around(emulated, file)
        verdict = self._judge(self.gate, file, record, measured, self._advance)
        verdict = replace(verdict, failures=(*verdict.failures, *self._inner_failures(file, record, denoiser)))
        if self._resized is not None:
            other = self._judge(self._resized, file, record, measured, lambda: None)
            size = "x".join(map(str, self._resized.manifest.sample_shape[1:]))
            failures = (f"at {size}: {failure}" for failure in other.failures)
            verdict = replace(verdict, failures=(*verdict.failures, *failures))
        self._keep(record, model, verdict)

    def add_encoder(self, encoder: TracedEncoder) -> None:
        """Measure the encoder and keep it."""
        verdict = self.gate.encoder(encoder.model, encoder.file, encoder.feeds, encoder.truth)
        self._keep(encoder.file, encoder.model, verdict)

    def require_parity(self) -> None:
        """Raise ParityError with the first failure, unless failures are allowed."""
        failures = worst(self.verdicts)
        if failures and not self._options.allow_parity_failure:
            more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
            raise ParityError(f"{failures[0]}{more}; nothing was written")

    def records(self) -> list[ModelFile]:
        """What bundle.json says of the files, measurements included."""
        return [
            replace(file, parity=verdict.parity, measured_on=verdict.measured_on, over_budget=verdict.failures)
            for file, verdict in self.verdicts
        ]

    def _judge(
        self, gate: Gate, file: GraphFile, record: ModelFile, model: onnx.ModelProto, advance: Callable[[], object]
    ) -> Verdict:
        if file.role == "denoiser":
            return gate.denoiser(model, record, advance)
        advance()
        if file.role == "step":
            return gate.step(model, record)
        return gate.sampler(model, record, unrolled=self.graphs.unrolls(file))

    def _inner_failures(self, file: GraphFile, record: ModelFile, denoiser: onnx.ModelProto) -> tuple[str, ...]:
        """What is wrong with the denoiser inside a reduced graph, where it was not measured as a file of its own."""
        own, key = file.role == "denoiser", (file.precision, file.target)
        if file.precision == "fp32" or key in self._gated:
            return ()
        self._gated.add(key)
        inner = () if own else self.gate.denoiser(denoiser, record, lambda: None).failures
        return tuple(f"its denoiser: {failure}" for failure in inner)

    def _keep(self, file: ModelFile, model: onnx.ModelProto, verdict: Verdict) -> None:
        self.models[file.path] = model
        self.verdicts.append((replace(file, opset=opset_of(model)), verdict))

    @cached_property
    def _calibration(self) -> list[dict[str, Array]]:
        """One set of states for all int8 files."""
        gate, options = self.gate, self._options
        return calibration_feeds(gate.reference, gate.manifest, options.calibration_states,
                                 options.calibration_seed, gate.conditions)  # fmt: skip

    @cached_property
    def _cost_steps(self) -> list[Step]:
        """The steps that the cost of a layer is averaged over."""
        chain = ddpm_plan(self.gate.manifest, COST_STEPS)
        return list(teacher_forced(self.gate.reference, self.gate.manifest, chain, 1, self.gate.conditions))

    def _quantise(self, file: GraphFile, graph: onnx.ModelProto) -> onnx.ModelProto:
        gate, options, feeds = self.gate, self._options, self._calibration
        budget = gate.budget("int8")

        def excess(model: onnx.ModelProto) -> float:
            with evaluator(model) as candidate:
                return gate.measure(candidate, JUDGED_TIMESTEPS).excess(budget)

        form = TARGETS[file.target].int8
        assert form is not None
        whole = quantise(graph, feeds, form=form)
        if not options.rank_layers and excess(whole) <= 1:
            return whole
        try:
            model, self.layers[file.path] = quantise_within(
                graph, feeds, 1.0, excess, form=form,
                cost=next_state_cost(self._cost_steps, picture_range(gate.manifest)),
            )  # fmt: skip
        except ParityError:
            if not options.allow_parity_failure:
                raise
            return whole
        return model


def _with_free_size(
    denoiser: Denoiser | onnx.ModelProto, manifest: Manifest, conditions: Mapping[str, Array]
) -> Manifest:
    if isinstance(denoiser, onnx.ModelProto):
        raise ExportError("free_size: got an ONNX file, whose axes are as they are; export the module that it is from")
    return with_free_size(manifest, denoiser, conditions)


def _resized_gate(gate: Gate) -> Gate | None:
    """Measures at another size and at fewer timesteps; None where there is no other size."""
    if gate.manifest.size_multiple is None:
        return None
    timesteps = min(gate.options.parity_timesteps or RESIZED_TIMESTEPS, RESIZED_TIMESTEPS)
    options = replace(gate.options, parity_timesteps=timesteps)
    return Gate(gate.reference, resized(gate.manifest), gate.conditions, options)


@contextmanager
def _reference(denoiser: Denoiser | onnx.ModelProto) -> Iterator[Evaluate]:
    """The network itself, or the user's own graph on ONNX Runtime."""
    if isinstance(denoiser, Denoiser):
        yield torch_evaluate(denoiser)
    else:
        with evaluator(denoiser) as reference:
            yield reference


@contextmanager
def _bar(files: Sequence[GraphFile], manifest: Manifest, options: Options) -> Iterator[Any]:
    chain = len(ddpm_plan(manifest, options.parity_timesteps)) + len(short_plan(manifest))
    total = sum(chain if file.role == "denoiser" else 1 for file in files)
    with tqdm(total=total, disable=None if options.progress else True) as bar:
        yield bar


def _write(
    denoiser: Denoiser | onnx.ModelProto,
    manifest: Manifest,
    out: str | os.PathLike[str],
    options: Options,
    work: _Work,
    reference: bytes,
) -> Bundle:
    shared = _shared(work.models, options)
    records = [
        replace(file, weights=SHARED_NAME if is_shared(work.models[file.path]) else None) for file in work.records()
    ]
    contents = {file.path: serialise(work.models[file.path], to_metadata(manifest, file)) for file in records}
    contents |= {REFERENCE_NAME: reference, **shared}
    if manifest.network is not None and isinstance(denoiser, Denoiser):
        weights = {name: tensor.contiguous().clone() for name, tensor in denoiser.network.state_dict().items()}
        contents[TORCH_NAME] = safetensors.torch.save(weights)
        base = replace(records[0], path=TORCH_NAME, target="torch", opset=None, parity=None, measured_on=None)
        records.append(replace(base, over_budget=(), weights=None))
    complete = replace(manifest, files=tuple(records), weights=tuple(map(DataFile, shared)))
    return write_bundle(out, complete, contents)


def _shared(models: Mapping[str, onnx.ModelProto], options: Options) -> dict[str, bytes]:
    """The file of large tensors that are moved out of the graphs; empty where these keep them."""
    large = [name for name, model in models.items() if is_large(model)]
    if large and options.share_weights is False:
        raise ExportError(
            f"{large[0]}: got over 2 GB of weights, expected less in one file; leave share_weights to None"
        )
    if not large and not options.share_weights:
        return {}
    data = share_weights(models.values())
    return {SHARED_NAME: data} if data else {}
