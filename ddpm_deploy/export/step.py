"""The `step` graph: the denoiser and one row of a plan for each sample of the batch, so that no host is in the loop."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import helper

from ddpm_deploy.bundle import TensorSpec
from ddpm_deploy.export.guide import Nulls, predict, steering, weight_of
from ddpm_deploy.export.nodes import Nodes, add_weights, check_denoiser, make_model, value_infos
from ddpm_deploy.export.signature import require_target, step_specs
from ddpm_deploy.export.update import current, next_state, split_tables

LARGEST = 3e38  # of float32, and still finite when a runtime rounds it to bf16


def build_step(
    denoiser: onnx.ModelProto,
    *,
    inputs: Sequence[TensorSpec],
    sample_shape: Sequence[int | str],
    state_size: int,
    learned_variance: bool,
    target: str,
    nulls: Nulls | None = None,
) -> onnx.ModelProto:
    """Build the graph (B samples, each at its own row) whose signature `step_specs` gives.

    inputs: of the denoiser: x, t and the conditions. state_size: K, fixed, so that the update is K+3 multiply-adds.
    nulls: of the conditions that have one; with any, the graph takes `guidance` and evaluates a doubled batch.
    `finite` (B,) float32 is 1 where the raw prediction of a sample is finite, else 0: a clip would hide it.
    """
    require_target(target)
    taken, given = step_specs(
        inputs, sample_shape, state_size=state_size, learned_variance=learned_variance, guided=bool(nulls)
    )
    check_denoiser(denoiser, inputs, sample_shape, learned_variance)
    rank, nodes = len(sample_shape), Nodes("step")
    tables = {spec.name: spec.name for spec in taken}
    row = split_tables(nodes, tables, lead=1, rank=rank, state_size=state_size)
    x = current(nodes, "state")
    weight = weight_of(nodes, "guidance", rank) if nulls else None
    conditions = steering(nodes, inputs[2:], nulls or {})
    m = predict(nodes, denoiser, x, "t", conditions, weight, learned_variance=learned_variance)
    state, x0 = next_state(nodes, "state", x, m, "noise", row, state_size)
    _finite(nodes, m, rank)
    nodes("Identity", state, output="next_state")
    nodes("Identity", x0, output="x0")
    graph = helper.make_graph(nodes.protos, "step", value_infos(taken), value_infos(given), nodes.constants)
    model = make_model(denoiser, graph)
    add_weights(model.graph, denoiser)
    return model


def _finite(nodes: Nodes, m: str, rank: int) -> None:
    """Comparing with a number tells NaN and both infinities apart from the rest on every runtime."""
    within = nodes("LessOrEqual", nodes("Abs", m), nodes.number(LARGEST))
    flags = nodes("Cast", within, to=onnx.TensorProto.FLOAT)
    nodes("ReduceMin", flags, nodes.integers(range(1, rank + 1)), keepdims=0, output="finite")
