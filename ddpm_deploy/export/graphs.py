"""The denoiser of a source in every form that is asked for, and the graphs built around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property

import numpy as np
import onnx

from ddpm_deploy.bundle import Manifest, ModelFile, TensorSpec
from ddpm_deploy.bundle.manifest import PORTABLE
from ddpm_deploy.errors import ExportError
from ddpm_deploy.export.emulate import REDUCED
from ddpm_deploy.export.fold import fold_attention
from ddpm_deploy.export.free_size import trace_shape
from ddpm_deploy.export.graph import TRACE_BATCH, Denoiser, check_graph, input_specs, output_spec, trace
from ddpm_deploy.export.half import to_half
from ddpm_deploy.export.options import MAX_UNROLLED_ROWS, Options
from ddpm_deploy.export.sampler_graph import BAKING, build_sampler
from ddpm_deploy.export.signature import sampler_specs, step_specs, unrolled_specs
from ddpm_deploy.export.simplify import merge_projections, scale_by_batch_norm, upsample_by_phases
from ddpm_deploy.export.step import build_step
from ddpm_deploy.export.targets import GraphFile
from ddpm_deploy.export.unrolled import build_unrolled
from ddpm_deploy.export.weights import copied, is_large
from ddpm_deploy.parity.next_state import default_plan
from ddpm_deploy.plan import Plan
from ddpm_deploy.plan.feeds import STATE_SIZE

CPU_TARGETS = (PORTABLE, "onnxruntime-cpu", "openvino")

Quantise = Callable[[GraphFile, onnx.ModelProto], onnx.ModelProto]


class Graphs:
    """Makes each graph of a bundle; traces once for every opset and reduces once for every precision and target.

    denoiser: the network under the contract of the graph, or the graph that the user brought. conditions: example
    values, at least `TRACE_BATCH` of each. quantise: makes the int8 form of an fp32 graph.
    """

    def __init__(
        self,
        denoiser: Denoiser | onnx.ModelProto,
        manifest: Manifest,
        conditions: Mapping[str, np.ndarray],
        options: Options,
        quantise: Quantise,
    ) -> None:
        self.manifest = manifest
        self._denoiser, self._conditions, self._options, self._quantise = denoiser, conditions, options, quantise
        self._traces: dict[int, onnx.ModelProto] = {}
        self._reduced: dict[tuple[str, str], onnx.ModelProto] = {}
        if options.unroll and len(self.plan) > MAX_UNROLLED_ROWS:
            raise ValueError(
                f"unroll: the default plan has {len(self.plan)} rows, expected at most {MAX_UNROLLED_ROWS}; "
                "give a solver with fewer steps"
            )

    def denoiser(self, file: GraphFile) -> onnx.ModelProto:
        """The denoiser in the file's precision, in the form that is fastest on its target."""
        key = (file.precision, file.target)
        if key not in self._reduced:
            self._reduced[key] = self._reduce(file)
        return self._reduced[key]

    def around(self, denoiser: onnx.ModelProto, file: GraphFile) -> onnx.ModelProto:
        """The graph of the file's role around this denoiser."""
        shape, inputs = self.manifest.graph_shape, self.inputs
        if file.role == "denoiser":
            return denoiser
        if file.role == "step":
            return build_step(denoiser, inputs=inputs, sample_shape=shape, state_size=STATE_SIZE,
                              learned_variance=self.learned, target=file.target, nulls=self.manifest.nulls)  # fmt: skip
        if self.unrolls(file):
            return build_unrolled(denoiser, inputs=inputs, sample_shape=shape, plan=self.plan, target=file.target,
                                  nulls=self.manifest.nulls)  # fmt: skip
        if is_large(denoiser):  # ONNX Runtime reads no weights from a file for the inside of a loop
            raise ExportError(f"{file.path}: got over 2 GB of weights, expected less in a loop; give --graph denoiser")
        plan = self.plan if file.target in BAKING else None
        return build_sampler(denoiser, inputs=inputs, sample_shape=shape, learned_variance=self.learned,
                             target=file.target, default_plan=plan, nulls=self.manifest.nulls)  # fmt: skip

    def record(self, file: GraphFile) -> ModelFile:
        """What bundle.json says of the file."""
        shape, inputs, guided = self.manifest.graph_shape, self.inputs, self.manifest.guided
        outputs: tuple[TensorSpec, ...] = (output_spec(self.manifest),)
        if file.role == "step":
            inputs, outputs = step_specs(
                inputs, shape, state_size=STATE_SIZE, learned_variance=self.learned, guided=guided
            )
        elif file.role == "sampler" and self.unrolls(file):
            draws = not self.plan.is_deterministic
            inputs, outputs = unrolled_specs(
                inputs, shape, rows=len(self.plan), draws_noise=draws, target=file.target, guided=guided
            )
        elif file.role == "sampler":
            inputs, outputs = sampler_specs(
                inputs, shape, learned_variance=self.learned, target=file.target, guided=guided
            )
        return ModelFile(file.path, file.role, file.precision, file.target, file.opset, inputs, outputs)

    @cached_property
    def plan(self) -> Plan:
        """The default plan of the model."""
        return default_plan(self.manifest)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs of the denoiser."""
        return input_specs(self.manifest.graph_shape, self.manifest.conditions)

    @property
    def learned(self) -> bool:
        """Whether the network predicts its variance."""
        return self.manifest.variance == "learned"

    def unrolls(self, file: GraphFile) -> bool:
        """Whether the sampler of this file is written without control flow."""
        if file.role != "sampler" or file.target in CPU_TARGETS:
            return False
        wanted = self._options.unroll
        return file.target == "onnxruntime-cuda" and len(self.plan) <= MAX_UNROLLED_ROWS if wanted is None else wanted

    def _reduce(self, file: GraphFile) -> onnx.ModelProto:
        graph = self._fp32(file)
        if file.precision == "fp32":
            return graph
        if file.precision == "int8" and is_large(graph):
            raise ExportError(f"{file.path}: got over 2 GB of weights, which cannot be quantised; leave int8 out")
        if file.precision == "int8":
            return self._quantise(file, graph)
        half = to_half(graph, file.precision)
        if not any(tensor.data_type in REDUCED for tensor in half.graph.initializer):
            raise ExportError(f"{file.path}: has no product but those that stay in float32; leave {file.precision} out")
        return half

    def _fp32(self, file: GraphFile) -> onnx.ModelProto:
        model = copied(self._trace(file.opset))
        merge_projections(model.graph)
        if file.target in CPU_TARGETS:
            scale_by_batch_norm(model.graph)
            upsample_by_phases(model.graph)
        return model

    def _trace(self, opset: int) -> onnx.ModelProto:
        if isinstance(self._denoiser, onnx.ModelProto):
            return self._denoiser
        if opset not in self._traces:
            self._traces[opset] = self._traced(self._denoiser, opset)
        return self._traces[opset]

    def _traced(self, denoiser: Denoiser, opset: int) -> onnx.ModelProto:
        x = np.zeros((TRACE_BATCH, *trace_shape(self.manifest)), np.float32)
        feeds = {"x": x, "t": np.zeros(TRACE_BATCH, np.float32)}
        feeds |= {name: array[:TRACE_BATCH] for name, array in self._conditions.items()}
        graph = trace(fold_attention(denoiser), feeds, opset, size_multiple=self.manifest.size_multiple)
        check_graph(graph, self.inputs, output_spec(self.manifest))
        return graph
