"""The `sampler` graph: the whole reverse loop of any plan in one file, a Scan over the plan's rows.

The body holds the weights as its own initializers: ONNX Runtime lays out convolutions only where it sees them. What
the body needs comes as a state or as a row of a table, never from the graph around it, which OpenVINO cannot read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import onnx
from onnx import helper, numpy_helper

from ddpm_deploy.bundle import TensorSpec
from ddpm_deploy.bundle.manifest import BATCH
from ddpm_deploy.export.guide import Nulls, predict, steering, weight_of
from ddpm_deploy.export.nodes import Nodes, add_weights, check_denoiser, make_model, value_infos
from ddpm_deploy.export.signature import fixed_state, require_target, sampler_specs
from ddpm_deploy.export.update import COLUMNS, current, next_state, split_tables
from ddpm_deploy.plan import Plan
from ddpm_deploy.plan.feeds import no_guidance, no_noise, plan_tables

TABLES = ("predict", "clip", "update", "log_variance")
BOTH = "both"  # the batch axis of what both halves of a guided evaluation take
SPARING = ("onnxruntime-cpu", "openvino")  # let the batch of a row depend on its weights
BAKING = ("onnxruntime-cpu", "onnxruntime-cuda")  # others freeze a default into a constant and drop the input


def build_sampler(
    denoiser: onnx.ModelProto,
    *,
    inputs: Sequence[TensorSpec],
    sample_shape: Sequence[int | str],
    learned_variance: bool,
    target: str,
    default_plan: Plan | None,
    state_size: int | None = None,
    nulls: Nulls | None = None,
) -> onnx.ModelProto:
    """Build the graph whose signature `sampler_specs` gives; one file serves any N and K.

    inputs: of the denoiser: x, t and the conditions. default_plan: what runs when the tables are left out, for
    ONNX Runtime only; one that draws noise leaves `noise` required. state_size: fixes K; None leaves it free, but for
    TensorRT it is `STATE_SIZE`, to which smaller plans are padded. nulls: of the conditions that have one; with any,
    the graph takes `guidance`, 1 by default where the tables have defaults, and evaluates a doubled batch in each row;
    on CPUs not in a row whose weights are all 1.
    """
    require_target(target)
    if default_plan is not None and target not in BAKING:
        raise ValueError(f"default_plan: {target!r} would freeze it and drop the inputs; give None")
    taken, given = sampler_specs(
        inputs,
        sample_shape,
        learned_variance=learned_variance,
        target=target,
        state_size=state_size,
        guided=bool(nulls),
    )
    check_denoiser(denoiser, inputs, sample_shape, learned_variance)
    nodes, K, rank = Nodes("sampler"), fixed_state(target, state_size), len(sample_shape)
    rows = _rows(nodes, [spec.name for spec in taken], rank, K)
    image = TensorSpec("images", (BATCH, K or "K", *sample_shape), "float32")
    scanned = _row_specs(rows, image, {spec.name: spec for spec in taken})
    conditions = [replace(spec, shape=(BOTH if nulls else BATCH, *spec.shape[1:])) for spec in inputs[2:]]
    body = _body(denoiser, (image, *conditions), scanned, K, learned_variance, spares=target in SPARING)
    carried = [_first_state(nodes, rank, K), *steering(nodes, inputs[2:], nulls or {}).values()]
    final, *_ = nodes.several("Scan", [*carried, *rows.values()], len(carried), body=body, num_scan_inputs=len(rows))
    current(nodes, final, output="samples")
    initializers = [*nodes.constants, *_defaults(default_plan, rank, learned_variance, K, guided=bool(nulls))]
    graph = helper.make_graph(nodes.protos, "sampler", value_infos(taken), value_infos(given), initializers)
    model = make_model(denoiser, graph)
    add_weights(body_of(model), denoiser)
    return model


def body_of(model: onnx.ModelProto) -> onnx.GraphProto:
    """What a `sampler` graph repeats for each row, to be read or changed."""
    (scan,) = (node for node in model.graph.node if node.op_type == "Scan")
    return next(attribute.g for attribute in scan.attribute if attribute.name == "body")


def _rows(nodes: Nodes, taken: Sequence[str], rank: int, state_size: int | None) -> dict[str, str]:
    """What the body sees of each row, name to tensor (N, ...): t for the batch, noise, weights, all coefficients."""
    one = nodes.integers([1])
    batch = nodes("Shape", "x_T", start=0, end=1)
    t = nodes("Expand", nodes("Unsqueeze", "t", one), nodes("Concat", one, batch, axis=0))
    tables = {name: nodes("Unsqueeze", name, one) for name in TABLES if name in taken}
    drawn = {name: name for name in ("noise", "guidance") if name in taken}
    return {"t": t} | drawn | split_tables(nodes, tables, lead=2, rank=rank, state_size=state_size)


def _first_state(nodes: Nodes, rank: int, state_size: int | None) -> str:
    """(B, K, *S), every image x_T."""
    images = nodes("Unsqueeze", "x_T", nodes.integers([1]))
    if state_size is not None:
        return nodes("Expand", images, nodes.integers([1, state_size, *[1] * rank]))
    K = nodes("Shape", "update", start=1, end=2)
    return nodes("Expand", images, nodes("Concat", nodes.integers([1]), K, nodes.integers([1] * rank), axis=0))


def _row_specs(rows: Iterable[str], image: TensorSpec, taken: Mapping[str, TensorSpec]) -> list[TensorSpec]:
    """One row of each tensor as the body sees it; OpenVINO has to know the ranks. taken: by the graph around it."""
    B, K, *sample = image.shape
    ones = [1] * len(sample)
    shapes = {"t": (B,), "state": (1, K, K, 1)}
    shapes |= {name: taken[name].shape[1:] for name in ("noise", "guidance") if name in taken}
    shapes |= {name: (1, K, *ones) for name in rows if name in COLUMNS or name.startswith("state_")}
    return [TensorSpec(name, shapes.get(name, (1, *ones)), "float32") for name in rows]


def _body(
    denoiser: onnx.ModelProto,
    carried: Sequence[TensorSpec],
    scanned: Sequence[TensorSpec],
    state_size: int | None,
    learned_variance: bool,
    *,
    spares: bool,
) -> onnx.GraphProto:
    """One row but for the weights: the state and the conditions in, the next state and the same conditions out."""
    nodes = Nodes("body")
    state, *steering = (replace(spec, name=f"body/carried/{spec.name}") for spec in carried)
    wires = {spec.name: inside.name for spec, inside in zip(carried[1:], steering, strict=True)}
    row = {spec.name: f"body/row/{spec.name}" for spec in scanned}
    x = current(nodes, state.name)
    weight = weight_of(nodes, row["guidance"], len(carried[0].shape) - 2) if "guidance" in row else None
    m = predict(nodes, denoiser, x, row["t"], wires, weight, learned_variance=learned_variance, spares=spares)
    new, _ = next_state(nodes, state.name, x, m, row["noise"], row, state_size)
    kept = [nodes("Identity", spec.name) for spec in steering]
    given = [replace(spec, name=name) for spec, name in zip((state, *steering), (new, *kept), strict=True)]
    taken = (state, *steering, *(replace(spec, name=row[spec.name]) for spec in scanned))
    return helper.make_graph(nodes.protos, "row", value_infos(taken), value_infos(given), nodes.constants)


def _defaults(
    plan: Plan | None, rank: int, learned_variance: bool, state_size: int | None, *, guided: bool
) -> list[onnx.TensorProto]:
    """Initializers with the names of inputs: their values where the caller gives none."""
    if plan is None:
        return []
    values = plan_tables(plan, learned_variance=learned_variance, state_size=state_size)
    if plan.is_deterministic:
        values["noise"] = no_noise(plan, rank)
    if guided:
        values["guidance"] = no_guidance(plan)
    return [numpy_helper.from_array(value, name) for name, value in values.items()]
