"""The `sampler` graph without control flow: a fixed plan row by row, for runtimes that capture CUDA graphs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
import onnx
from onnx import helper

from ddpm_deploy.bundle import TensorSpec
from ddpm_deploy.export.guide import Nulls, predict, steering, weight_of
from ddpm_deploy.export.nodes import (
    Nodes,
    add_weights,
    check_denoiser,
    make_model,
    predicts_variance,
    value_infos,
)
from ddpm_deploy.export.options import MAX_UNROLLED_ROWS
from ddpm_deploy.export.signature import require_target, unrolled_specs
from ddpm_deploy.export.update import deviation, halves
from ddpm_deploy.plan import Plan
from ddpm_deploy.plan.rows import Row, Terms

CAPTURING = ("onnxruntime-cuda", "tensorrt")


def build_unrolled(
    denoiser: onnx.ModelProto,
    *,
    inputs: Sequence[TensorSpec],
    sample_shape: Sequence[int | str],
    plan: Plan,
    target: str,
    nulls: Nulls | None = None,
) -> onnx.ModelProto:
    """Build the graph whose signature `unrolled_specs` gives: x_T, noise where the plan draws it, the conditions.

    inputs: of the denoiser: x, t and the conditions. nulls: as in `build_step`. The copies of the denoiser share its
    weights; the plan's numbers are constants, and zeros are left out.
    """
    require_target(target, CAPTURING)
    if len(plan) > MAX_UNROLLED_ROWS:
        raise ValueError(f"plan: got {len(plan)} rows, expected at most {MAX_UNROLLED_ROWS}; use build_sampler")
    taken, given = unrolled_specs(
        inputs,
        sample_shape,
        rows=len(plan),
        draws_noise=not plan.is_deterministic,
        target=target,
        guided=bool(nulls),
    )
    learned = predicts_variance(denoiser, sample_shape)
    check_denoiser(denoiser, inputs, sample_shape, learned)
    if plan.log_variance is not None and not learned:
        raise ValueError(f"plan: got {plan.solver!r} with a learned variance, but the denoiser predicts none")
    nodes, rank = Nodes("sampler"), len(sample_shape)
    conditions = steering(nodes, inputs[2:], nulls or {})
    state = ["x_T"] * len(plan.state)
    batch = nodes("Shape", "x_T", start=0, end=1)
    for i in range(len(plan)):
        t = nodes("Expand", nodes.number([plan.t[i]]), batch)
        weight = weight_of(nodes, nodes("Gather", "guidance", nodes.integers(i), axis=0), rank) if nulls else None
        m = predict(nodes, denoiser, state[0], t, conditions, weight, learned_variance=learned,
                    activations=f"row{i}/")  # fmt: skip
        state = _advance(nodes, plan, i, state, m, learned)
    nodes("Identity", state[0], output="samples")
    graph = helper.make_graph(nodes.protos, "sampler", value_infos(taken), value_infos(given), nodes.constants)
    model = make_model(denoiser, graph)
    add_weights(model.graph, denoiser)
    return model


def _advance(nodes: Nodes, plan: Plan, i: int, state: Sequence[str], m: str, learned: bool) -> list[str]:
    """The state after row i; after the last row only the sample."""
    row = Row.compile(plan, i, np.float32)
    m, v = halves(nodes, m) if learned else (m, "")
    z = nodes("Gather", "noise", nodes.integers(i), axis=0) if row.draws else ""
    if row.draws and row.log_variance is not None:
        small, large = map(nodes.number, row.log_variance)
        z = nodes("Mul", z, deviation(nodes, v, small, large))
    columns = [*state, m, m, z]
    columns[-3] = _clipped(nodes, _combined(nodes, row.to_x0, columns), row)
    wanted = row.to_state if i + 1 < len(plan) else row.to_state[:1]
    return [_combined(nodes, terms, columns) for terms in wanted]


def _clipped(nodes: Nodes, d: str, row: Row) -> str:
    if row.clip is None:
        return d
    lower, upper = map(nodes.number, row.clip)
    return nodes("Min", nodes("Max", d, lower), upper)


def _combined(nodes: Nodes, terms: Terms, columns: Sequence[str]) -> str:
    """Sum of factor x column, from left to right."""
    products = [columns[k] if factor == 1 else nodes("Mul", columns[k], nodes.number(factor)) for k, factor in terms]
    return reduce(lambda a, b: nodes("Add", a, b), products)
