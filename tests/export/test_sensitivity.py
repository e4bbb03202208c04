"""Which layers stay in float32, on costs that are known and on the trained network."""

from __future__ import annotations

import onnx
import pytest
from digits_denoiser import calibration, manifest, measured, model
from onnx import numpy_helper

from ddpm_deploy.errors import ParityError
from ddpm_deploy.export.evaluate import evaluator
from ddpm_deploy.export.quantise import layers, quantise
from ddpm_deploy.export.sensitivity import Layer, next_state_cost, quantise_within, render
from ddpm_deploy.export.targets import ONNXRUNTIME_INT8, TENSORRT_INT8
from ddpm_deploy.job import example_conditions
from ddpm_deploy.parity.budget import budget_for
from ddpm_deploy.parity.next_state import default_plan, picture_range, teacher_forced

EXAMPLE = example_conditions(manifest().conditions, 2)


def reduced(graph: onnx.ModelProto) -> set[str]:
    """Names of the layers that are int8."""
    dequantised = {name for n in graph.graph.node if n.op_type == "DequantizeLinear" for name in n.output}
    return {n.name for n in graph.graph.node if n.op_type == "Conv" and n.input[1] in dequantised}


def known(costs: dict[str, float]):
    """A measure under which the errors of the int8 layers add up."""
    return lambda graph: sum(costs[name] for name in reduced(graph))


@pytest.fixture(scope="module")
def few() -> onnx.ModelProto:
    """The digits network up to its sixth convolution: five layers less the first and the last."""
    graph = onnx.ModelProto.FromString(model().SerializeToString())
    last = [n for n in graph.graph.node if n.op_type == "Conv"][5]
    kept = list(graph.graph.node)[: list(graph.graph.node).index(last) + 1]
    del graph.graph.node[:]
    graph.graph.node.extend(kept)
    graph.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info(last.output[0], onnx.TensorProto.FLOAT, None))
    return graph


COSTS = (5.0, 1.0, 40.0, 2.0)


@pytest.mark.parametrize(("budget", "floats"), [(48, 0), (47, 1), (8, 1), (7.9, 2), (3, 2), (2.5, 3), (1, 3)])
def test_the_fewest_layers_that_keep_the_budget_stay_float32_the_worst_first(
    few: onnx.ModelProto, budget: float, floats: int
) -> None:
    names = layers(few)
    costs = dict(zip(names, COSTS, strict=True))
    graph, table = quantise_within(few, calibration()[:2], budget, known(costs), form=ONNXRUNTIME_INT8)
    worst_first = [names[k] for k in (2, 0, 3, 1)]
    assert [layer.name for layer in table] == worst_first
    assert [layer.cost for layer in table] == [40, 5, 2, 1]
    assert [layer.kept_float for layer in table] == [k < floats for k in range(4)]
    assert reduced(graph) == set(worst_first[floats:])


def test_over_budget_with_every_choice_names_the_worst_layers(few: onnx.ModelProto) -> None:
    names = layers(few)
    costs = dict(zip(names, COSTS, strict=True))
    with pytest.raises(ParityError, match=f"over 0.5 with every choice .* from the worst: {names[2]} 40;"):
        quantise_within(few, calibration()[:2], 0.5, known(costs), form=TENSORRT_INT8)


def test_layers_are_ranked_by_the_cheap_cost_and_judged_by_the_measure(few: onnx.ModelProto) -> None:
    names = layers(few)
    ranking, true = dict(zip(names, (4.0, 3, 2, 1), strict=True)), dict(zip(names, COSTS, strict=True))
    calls = []
    graph, table = quantise_within(
        few,
        calibration()[:2],
        10,
        known(true),
        form=ONNXRUNTIME_INT8,
        cost=known(ranking),
        advance=lambda: calls.append(1),
    )
    assert [layer.name for layer in table] == list(names)
    assert reduced(graph) == {names[3]}  # the 40 is third in the ranking: it takes three to get rid of it
    assert len(calls) == 4 + 4  # each layer alone; 0, 1, 2 and 3 layers left out


def test_a_nan_is_over_every_budget(few: onnx.ModelProto) -> None:
    with pytest.raises(ParityError, match="over 1 with every choice"):
        quantise_within(few, calibration()[:2], 1, lambda graph: float("nan"), form=ONNXRUNTIME_INT8)


@pytest.fixture(scope="module")
def cheap():
    with evaluator(model(), 1) as reference:
        steps = list(
            teacher_forced(
                reference, manifest(), default_plan(manifest()), 2, example_conditions(manifest().conditions, 2)
            )
        )
    return next_state_cost(steps[::3], picture_range(manifest()), 1)


def test_a_tighter_budget_of_a_trained_network_costs_its_last_layers(cheap) -> None:
    """The last residual block meets no normalisation any more: its error goes straight into the picture."""

    def measure(graph: onnx.ModelProto) -> float:
        return measured(graph, 12).excess(budget_for("int8"))

    everything = quantise(model(), calibration(), form=ONNXRUNTIME_INT8)
    tight = 0.6 * measure(everything)
    graph, table = quantise_within(model(), calibration(), tight, measure, form=ONNXRUNTIME_INT8, cost=cheap)
    kept = [layer for layer in table if layer.kept_float]
    assert measure(graph) <= tight
    assert 0 < len(kept) < 0.7 * len(table)
    assert kept[0].weight.startswith("network.up.1.blocks.1")
    assert reduced(graph) == {layer.name for layer in table if not layer.kept_float}


def test_a_layer_with_an_outlier_weight_costs_more() -> None:
    """One large number takes the whole scale of its channel, and the others are rounded away."""
    sick = onnx.ModelProto.FromString(model().SerializeToString())
    layer = next(n for n in sick.graph.node if n.name == layers(sick)[9])
    weight = next(t for t in sick.graph.initializer if t.name == layer.input[1])
    array = numpy_helper.to_array(weight).copy()
    array[:, 0] *= 30
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    assert alone(sick, layer.name) > 3 * alone(model(), layer.name)


def alone(graph: onnx.ModelProto, name: str) -> float:
    """The cost of one int8 layer."""
    with evaluator(graph, 1) as reference:
        steps = list(
            teacher_forced(
                reference, manifest(), default_plan(manifest()), 2, example_conditions(manifest().conditions, 2)
            )
        )
    others = [other for other in layers(graph) if other != name]
    int8 = quantise(graph, calibration()[::4], form=ONNXRUNTIME_INT8, keep_float=others)
    return next_state_cost(steps, picture_range(manifest()), 1)(int8)


def test_the_table_is_text_worst_layer_first() -> None:
    text = render([Layer("a", "up.weight", 2048, 0.0029, True), Layer("b", "down.0.weight", 1_000_000, 5.8e-05, False)])
    assert text.splitlines() == [
        "layer          parameters     cost  kept",
        "up.weight           2,048   0.0029  float32",
        "down.0.weight   1,000,000  5.8e-05  int8",
    ]
