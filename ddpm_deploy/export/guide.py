"""The network in a larger graph; under classifier-free guidance with and without its conditions, in a doubled batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from ddpm_deploy.bundle import TensorSpec
from ddpm_deploy.export.nodes import WEIGHTS, Nodes, place
from ddpm_deploy.export.update import halves, weighted_sum

END = 2**62  # of a slice that takes all the rest
Nulls = Mapping[str, int | float]  # of the conditions that have one; without any, nothing is guided


def steering(nodes: Nodes, conditions: Sequence[TensorSpec], nulls: Nulls) -> dict[str, str]:
    """What `predict` takes of each condition (B, ...): itself, or where nulls has any the values of both halves."""
    if not nulls:
        return {spec.name: spec.name for spec in conditions}
    return {spec.name: _both(nodes, spec, nulls.get(spec.name)) for spec in conditions}


def weight_of(nodes: Nodes, guidance: str, rank: int) -> str:
    """Weights (B,), or one for all, as a factor of (B, *S). rank: of a sample."""
    return nodes("Unsqueeze", guidance, nodes.integers(range(1, rank + 1)))


def predict(
    nodes: Nodes,
    denoiser: onnx.ModelProto,
    x: str,
    t: str,
    conditions: Mapping[str, str],
    weight: str | None,
    *,
    learned_variance: bool,
    spares: bool = False,
    activations: str = WEIGHTS,
) -> str:
    """Append the denoiser and give the name of its prediction (B, *S').

    x: (B, *S). t: (B,). conditions: what `steering` gives. weight: None without guidance. spares: evaluate no second
    half where every weight is 1; a runtime must then let the batch depend on data. activations: see `place`.
    """
    if weight is None:
        return place(nodes, denoiser, {"x": x, "t": t, **conditions}, activations)
    own = {"x": x, "t": t}
    if spares:
        toward, away = _spared(nodes, denoiser, own, conditions, weight, activations)
    else:
        both = {name: nodes("Concat", tensor, tensor, axis=0) for name, tensor in own.items()}
        m = place(nodes, denoiser, {**both, **conditions}, activations)
        toward, away = nodes.several("Split", [m], 2, axis=0, num_outputs=2)
    return _blend(nodes, toward, away, weight, learned_variance)


def _spared(
    nodes: Nodes,
    denoiser: onnx.ModelProto,
    own: Mapping[str, str],
    conditions: Mapping[str, str],
    weight: str,
    activations: str,
) -> tuple[str, str]:
    """Both halves; where every weight is 1 the first one for either, as only that was evaluated."""
    zero, batch = nodes.integers([0]), nodes("Shape", own["x"], start=0, end=1)
    furthest = nodes("ReduceMax", nodes("Abs", nodes("Sub", weight, nodes.number(1))), keepdims=0)
    guided = nodes("Cast", nodes("Cast", furthest, to=onnx.TensorProto.BOOL), to=onnx.TensorProto.INT64)
    extra = nodes("Mul", batch, guided)
    wires = {
        name: nodes("Concat", tensor, nodes("Slice", tensor, zero, extra, zero), axis=0) for name, tensor in own.items()
    }
    total = nodes("Add", batch, extra)
    wires |= {name: nodes("Slice", tensor, zero, total, zero) for name, tensor in conditions.items()}
    m = place(nodes, denoiser, wires, activations)
    toward, rest = nodes("Slice", m, zero, batch, zero), nodes("Slice", m, batch, nodes.integers([END]), zero)
    return toward, nodes("Slice", nodes("Concat", rest, toward, axis=0), zero, batch, zero)


def _both(nodes: Nodes, condition: TensorSpec, null: int | float | None) -> str:
    """(2B, ...): the condition, and behind it the null, or itself again where it has none."""
    name = other = condition.name
    if null is not None:
        value = nodes("Constant", value=numpy_helper.from_array(np.array(null, condition.dtype)))
        other = nodes("Expand", value, nodes("Shape", name))
    return nodes("Concat", name, other, axis=0)


def _blend(nodes: Nodes, toward: str, away: str, weight: str, learned_variance: bool) -> str:
    """As `guidance.blend`, with the same arithmetic."""
    if not learned_variance:
        return _between(nodes, toward, away, weight)
    (m_c, v_c), (m_u, v_u) = halves(nodes, toward), halves(nodes, away)
    within = nodes("Min", nodes("Max", weight, nodes.number(0)), nodes.number(1))
    return nodes("Concat", _between(nodes, m_c, m_u, weight), _between(nodes, v_c, v_u, within), axis=1)


def _between(nodes: Nodes, toward: str, away: str, weight: str) -> str:
    return weighted_sum(nodes, [toward, away], [weight, nodes("Sub", nodes.number(1), weight)])
