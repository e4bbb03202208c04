"""The passes that make a graph cheaper: the same prediction from fewer operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from ddpm_deploy.export.fold import FoldedAttention, fold_attention
from ddpm_deploy.export.graph import Denoiser, trace
from ddpm_deploy.export.simplify import merge_projections, scale_by_batch_norm, upsample_by_phases
from ddpm_deploy.model import UNet, UNetConfig

BLOCKS = 2 + 2 + 4  # down, middle, up
NORMS = 2 * BLOCKS + 4 + 1  # of the blocks, the attentions and the output

Pass = Callable[[onnx.GraphProto], None]


def unet(**options: Any) -> UNet:
    torch.manual_seed(0)
    config = {"in_channels": 3, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_groups": 4}
    attention = {"down_attention": (False, True), "up_attention": (True, False)}
    network = UNet(UNetConfig(**{**config, **attention, **options})).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.normal_(0.1, 0.2)
    return network


def feeds(batch: int, size: int = 8) -> dict[str, np.ndarray]:
    x = np.random.default_rng(batch).standard_normal((batch, 3, size, size)).astype(np.float32)
    return {"x": x, "t": np.linspace(0, 900, batch).astype(np.float32)}


def run(model: onnx.ModelProto, given: dict[str, np.ndarray]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    out: np.ndarray = session.run(None, given)[0]
    return out


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.fixture(scope="module")
def traced() -> onnx.ModelProto:
    return trace(Denoiser(unet(), ()).eval(), feeds(2), 18)


def simplified(model: onnx.ModelProto, *passes: Pass) -> onnx.ModelProto:
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    for each in passes:
        each(copy.graph)
    onnx.checker.check_model(copy, full_check=True)
    return copy


@pytest.mark.parametrize(
    ("each", "gone", "new"),
    [
        (merge_projections, {"Gemm": BLOCKS - 1, "Unsqueeze": BLOCKS - 1}, {"Split": 1}),
        (scale_by_batch_norm, {"Mul": NORMS, "Add": NORMS}, {"BatchNormalization": NORMS}),
        (upsample_by_phases, {"Resize": 1}, {"Conv": 3, "DepthToSpace": 1}),
    ],
)
def test_a_pass_takes_out_what_it_should_and_leaves_the_prediction(
    traced: onnx.ModelProto, each: Pass, gone: dict[str, int], new: dict[str, int]
) -> None:
    model = simplified(traced, each)
    before, after = operators(traced), operators(model)
    assert {op: before[op] - after[op] for op in gone} == gone
    assert {op: after[op] - before[op] for op in new} == new
    for batch in (1, 5):
        assert relative(run(model, feeds(batch)), run(traced, feeds(batch))) < 2e-6


def test_all_passes_together_leave_the_prediction_and_no_unused_tensor(traced: onnx.ModelProto) -> None:
    model = simplified(traced, merge_projections, scale_by_batch_norm, upsample_by_phases)
    assert relative(run(model, feeds(3)), run(traced, feeds(3))) < 2e-6
    used = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= used


def test_passes_leave_a_graph_alone_that_has_nothing_for_them(traced: onnx.ModelProto) -> None:
    passes = (merge_projections, scale_by_batch_norm, upsample_by_phases)
    once = simplified(traced, *passes)
    assert simplified(once, *passes).SerializeToString() == once.SerializeToString()


@pytest.mark.parametrize(("axes", "bias", "products"), [([2, 3], 3, 1), ([1], 3, 2), ([2, 3], 1, 2)])
def test_projections_are_merged_only_where_channels_stay_the_second_axis_and_biases_are_whole(
    axes: list[int], bias: int, products: int
) -> None:
    draw, tensors, nodes = np.random.default_rng(0).standard_normal, [], []
    for i in range(2):
        parts = {"weight": draw((3, 4), np.float32), "bias": draw(bias, np.float32), "axes": np.array(axes)}
        tensors += [numpy_helper.from_array(value, f"{name}{i}") for name, value in parts.items()]
        nodes.append(helper.make_node("Gemm", ["steer", f"weight{i}", f"bias{i}"], [f"product{i}"], transB=1))
        nodes.append(helper.make_node("Unsqueeze", [f"product{i}", f"axes{i}"], [f"wide{i}"]))
    nodes.append(helper.make_node("Mul", ["wide0", "wide1"], ["prediction"]))
    steer = helper.make_tensor_value_info("steer", TensorProto.FLOAT, ["B", 4])
    out = helper.make_tensor_value_info("prediction", TensorProto.FLOAT, [None] * (2 + len(axes)))
    graph = helper.make_graph(nodes, "g", [steer], [out], tensors)
    plain = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    model = simplified(plain, merge_projections)
    assert operators(model)["Gemm"] == products
    given = {"steer": draw((2, 4), np.float32)}
    np.testing.assert_allclose(run(model, given), run(plain, given), rtol=1e-5)


def upsampling(scales: list[float], kernel: int = 3, **attributes: Any) -> onnx.ModelProto:
    """Resize and Conv, with a second reader of the resized picture where `shared`."""
    resize = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"} | attributes
    weight = np.random.default_rng(0).standard_normal((2, 3, kernel, kernel)).astype(np.float32)
    pads = [kernel // 2] * 4
    nodes = [
        helper.make_node("Resize", ["x", "", "scales"], ["big"], **resize),
        helper.make_node("Conv", ["big", "weight"], ["prediction"], kernel_shape=[kernel] * 2, pads=pads),
    ]
    tensors = [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.float32(scales), "scales")]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 3, "H", "W"])
    y = helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["B", 2, None, None])
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (3, 5)])
def test_upsampling_is_exact_at_every_edge_and_without_a_bias(size: tuple[int, int]) -> None:
    plain = upsampling([1, 1, 2, 2])
    model = simplified(plain, upsample_by_phases)
    assert operators(model) == {"Conv": 4, "Concat": 1, "DepthToSpace": 1}
    given = {"x": np.random.default_rng(1).standard_normal((2, 3, *size)).astype(np.float32)}
    np.testing.assert_allclose(run(model, given), run(plain, given), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        upsampling([1, 1, 3, 3]),
        upsampling([1, 1, 2, 1]),
        upsampling([1, 1, 2, 2], kernel=5),
        upsampling([1, 1, 2, 2], mode="linear"),
        upsampling([1, 1, 2, 2], nearest_mode="ceil"),
    ],
)
def test_other_resizing_is_left_alone(model: onnx.ModelProto) -> None:
    assert operators(simplified(model, upsample_by_phases)) == {"Resize": 1, "Conv": 1}


def test_folded_attention_predicts_the_same_and_leaves_the_network_alone() -> None:
    network = unet()
    folded = fold_attention(network).requires_grad_(False)
    given = [torch.from_numpy(array) for array in feeds(3).values()]
    assert relative(folded(*given).numpy(), network(*given).numpy()) < 2e-6
    assert sum(isinstance(module, FoldedAttention) for module in folded.modules()) == 4
    assert not any(isinstance(module, FoldedAttention) for module in network.modules())
    count = [sum(p.numel() for p in net.parameters()) for net in (network, folded)]
    assert count[0] - count[1] == 4 * (2 * 16 * 16 + 2 * 16)  # two of four projections, and their biases


def test_attention_with_several_heads_is_not_folded() -> None:
    folded = fold_attention(unet(attention_head_dim=8))
    assert not any(isinstance(module, FoldedAttention) for module in folded.modules())
