"""What int8 costs layer by layer, and which layers to leave in float32 until the whole graph is within budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from numpy.typing import NDArray

from ddpm_deploy.errors import ParityError
from ddpm_deploy.export.evaluate import evaluator
from ddpm_deploy.export.quantise import activation_ranges, insert, layers, prepared
from ddpm_deploy.export.targets import Int8
from ddpm_deploy.parity.next_state import Step, mean_error

HEAD = 5  # layers shown in an error

Array = NDArray[Any]
Measure = Callable[[onnx.ModelProto], float]


@dataclass(frozen=True)
class Layer:
    """One quantisable layer.

    name: of the node. weight: of its tensor, which says where in the network it is; parameters: how many it has.
    cost: of the graph in which this layer alone is int8. kept_float: in the graph that was chosen.
    """

    name: str
    weight: str
    parameters: int
    cost: float
    kept_float: bool


def next_state_cost(steps: Sequence[Step], peak: float, threads: int | None = None) -> Measure:
    """A cheap cost of a layer: the RMS error of the next state over a few reference steps, see `teacher_forced`."""

    def cost(model: onnx.ModelProto) -> float:
        with evaluator(model, threads) as candidate:
            return mean_error(steps, candidate, peak)

    return cost


def quantise_within(
    model: onnx.ModelProto,
    calibration: Sequence[Mapping[str, Array]],
    budget: float,
    measure: Measure,
    *,
    form: Int8,
    cost: Measure | None = None,
    advance: Callable[[], object] = lambda: None,
) -> tuple[onnx.ModelProto, tuple[Layer, ...]]:
    """Quantise as many layers as `measure(graph) <= budget` allows, the cheapest first; the table is worst first.

    measure: such as `NextState.excess`, whose budget is 1. cost: what the layers are ranked by, None is `measure`.
    advance: called after each graph that was measured, at most `len(layers(model)) + 2 log2` of that many times.
    Raises ParityError where not even the cheapest layer alone is within budget.
    """
    ranges = activation_ranges(model, calibration)
    names = layers(model)

    def built(floating: Sequence[str]) -> onnx.ModelProto:
        return insert(model, ranges, form=form, keep_float=floating)

    costs = {}
    for name in names:
        costs[name] = (cost or measure)(built([other for other in names if other != name]))
        advance()
    ranked = sorted(names, key=lambda name: -costs[name])

    def excess(kept: int) -> float:
        error = measure(built(ranked[:kept]))
        advance()
        return error

    kept = _fewest(excess, len(ranked), budget)
    if kept is None:
        shown = "; ".join(f"{name} {costs[name]:.3g}" for name in ranked[:HEAD])
        raise ParityError(
            f"int8: got an error over {budget:g} with every choice of layers, costs from the worst: {shown}; "
            "give more calibration, a larger budget, or fp16"
        )
    return built(ranked[:kept]), _table(model, ranked, costs, kept)


def render(table: Sequence[Layer]) -> str:
    """The table as text, worst layer first."""
    width = max((len(layer.weight) for layer in table), default=0)
    lines = [f"{'layer':<{width}}  {'parameters':>10}  {'cost':>7}  kept"]
    lines += [
        f"{layer.weight:<{width}}  {layer.parameters:>10,}  {layer.cost:>7.2g}  "
        f"{'float32' if layer.kept_float else 'int8'}"
        for layer in table
    ]
    return "\n".join(lines)


def _fewest(excess: Callable[[int], float], total: int, budget: float) -> int | None:
    """The smallest number of layers to leave out, found by doubling and bisection; None where all but one are too few.

    As if fewer int8 layers were never worse, which holds to rounding; the number found is within budget in any case.
    """
    low, kept = -1, 0  # `low` is known to be over budget
    while kept < total and not excess(kept) <= budget:
        low, kept = kept, max(1, 2 * kept)
    if kept >= total:
        kept = total - 1
        if kept <= low or not excess(kept) <= budget:
            return None
    while kept - low > 1:
        middle = (low + kept) // 2
        low, kept = (low, middle) if excess(middle) <= budget else (middle, kept)
    return kept


def _table(model: onnx.ModelProto, ranked: Sequence[str], costs: Mapping[str, float], kept: int) -> tuple[Layer, ...]:
    graph = prepared(model).graph
    weights = {node.name: node.input[1] for node in graph.node if len(node.input) > 1}
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    return tuple(
        Layer(name, weights[name], sizes[weights[name]], costs[name], k < kept) for k, name in enumerate(ranked)
    )
