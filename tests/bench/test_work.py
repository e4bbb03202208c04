"""The work of a forward: graphs counted by hand, torch's own counter, the figures of the paper, and the roofline."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper, parser
from torch.utils.flop_counter import FlopCounterMode

from ddpm_deploy.bench.limits import Limit, Limits
from ddpm_deploy.bench.work import Work, count_work, percent_of_limit, time_at_limit
from ddpm_deploy.bundle import TensorSpec, default_bundle, read_bundle
from ddpm_deploy.model import UNet, UNetConfig


def graph(inputs: str, nodes: str, weights: Mapping[str, tuple[int, ...]], outputs: str = "float[] y") -> bytes:
    """An ONNX file with float32 weights of these shapes."""
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 23]> g ({inputs}) => ({outputs}) {{{nodes}}}')
    model.graph.initializer.extend(
        numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()
    )
    data: bytes = model.SerializeToString()
    return data


CONVOLUTION = graph(
    "float[B,3,8,8] x", "y = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w, b)", {"w": (16, 3, 3, 3), "b": (16,)}
)
BY_HAND: dict[str, tuple[bytes, int]] = {  # of two pictures
    "convolution": (CONVOLUTION, 2 * 2 * (16 * 4 * 4) * (3 * 9)),
    "grouped convolution": (
        graph("float[B,4,8,8] x", "y = Conv<group=4, pads=[1,1,1,1]>(x, w)", {"w": (8, 1, 3, 3)}),
        2 * 2 * (8 * 8 * 8) * 9,
    ),
    "convolution of signals": (graph("float[B,3,10] x", "y = Conv(x, w)", {"w": (5, 3, 3)}), 2 * 2 * (5 * 8) * (3 * 3)),
    "transposed convolution": (
        graph("float[B,4,5,5] x", "y = ConvTranspose<strides=[2,2]>(x, w)", {"w": (4, 6, 2, 2)}),
        2 * 2 * (6 * 10 * 10) * 4,  # windows side by side: each output value meets one weight a channel
    ),
    "gemm": (graph("float[B,10] x", "y = Gemm<transB=1>(x, w, b)", {"w": (5, 10), "b": (5,)}), 2 * 2 * 5 * 10),
    "gemm, transposed": (graph("float[10,B] x", "y = Gemm<transA=1>(x, w)", {"w": (10, 5)}), 2 * 2 * 5 * 10),
    "matmul of a stack": (
        graph("float[B,4,8,16] x", "y = MatMul(x, w)", {"w": (4, 16, 32)}), 2 * 2 * 4 * 8 * 32 * 16,
    ),
    "attention": (
        graph("float[B,3,8,16] q, float[B,3,12,16] k, float[B,3,12,20] v", "y = Attention(q, k, v)", {}),
        2 * 2 * 3 * 8 * 12 * (16 + 20),
    ),
    "what multiplies nothing": (graph("float[B,3,8,8] x", "s = Sigmoid(x) y = Mul(x, s)", {}), 0),
}  # fmt: skip


@pytest.mark.parametrize("case", BY_HAND)
def test_products_are_those_counted_by_hand(case: str) -> None:
    model, flops = BY_HAND[case]
    axes = {"B": 2} if case == "gemm, transposed" else {}
    assert count_work(model, 2, axes).flops == flops


def test_every_operator_is_on_the_list_by_its_name() -> None:
    nodes = "h = Conv(x, w) f = Flatten(h) g = Gemm(f, v) y = MatMul(g, u)"
    work = count_work(graph("float[B,2,4,4] x", nodes, {"w": (3, 2, 3, 3), "v": (12, 5), "u": (5, 7)}))
    assert work.flops_by_op == {"Conv": 2 * 12 * 18, "Gemm": 2 * 5 * 12, "MatMul": 2 * 7 * 5}


def test_bytes_of_one_node_are_its_weights_and_its_edges() -> None:
    work = count_work(CONVOLUTION, 2)
    assert work.weight_bytes == 4 * (16 * 27 + 16)
    assert work.edge_bytes == 4 * 2 * (3 * 64 + 16 * 16)
    assert work.activation_bytes == 0
    assert work.bytes_lower == work.bytes_upper == work.weight_bytes + work.edge_bytes


def test_what_lies_between_nodes_is_written_once_and_read_by_each() -> None:
    nodes = "h = Relu(x) v = Reshape(h, shape) s = Sigmoid(v) y = Mul(v, s)"
    model = onnx.load_model_from_string(graph("float[B,4,4] x", nodes, {}))
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 16]), "shape"))
    one = 4 * 3 * 16  # three pictures
    work = count_work(model.SerializeToString(), 3)
    assert work.edge_bytes == 2 * one
    assert work.activation_bytes == (1 + 1 + 2 + 1) * one  # h written; v read twice; s written and read


def test_what_constants_alone_make_costs_nothing() -> None:
    model = graph("float[B,4] x", "w2 = MatMul(w, w) w3 = Relu(w2) y = Add(x, w3)", {"w": (4, 4)})
    assert count_work(model, 4).activation_bytes == 0


def test_operators_that_would_be_missed_are_refused() -> None:
    with pytest.raises(ValueError, match=r"graph: got Einsum .* not counted; export a denoiser"):
        count_work(graph("float[B,4] x", 'y = Einsum<equation="ij,jk->ik">(x, w)', {"w": (4, 4)}))


def test_free_axes_need_a_size() -> None:
    model = graph("float[B,3,H,W] x", "y = Conv(x, w)", {"w": (2, 3, 1, 1)})
    assert count_work(model, 1, {"H": 4, "W": 6}).flops == 2 * 2 * 24 * 3
    with pytest.raises(ValueError, match="axes: got no size for 'H' of 'x'"):
        count_work(model, 1)


def specs(channels: int, size: int) -> tuple[TensorSpec, TensorSpec]:
    return TensorSpec("x", ("B", channels, size, size), "float32"), TensorSpec("t", ("B",), "float32")


def torch_flops(network: Any, channels: int, size: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, channels, size, size), torch.zeros(1))
    flops: int = counter.get_total_flops()
    return flops


NETWORKS = {"digits": (UNetConfig.digits(), 1, 8), "CIFAR-10": (UNetConfig.cifar10(), 3, 32)}


@cache
def network(name: str) -> UNet:
    return UNet(NETWORKS[name][0]).eval()


@pytest.fixture(scope="module")
def plain(plain_onnx: Callable[..., bytes]) -> Callable[[str], bytes]:
    """The export of a network by name; the first of a process takes a dozen seconds."""
    return cache(lambda name: plain_onnx(network(name), specs(*NETWORKS[name][1:])))


@pytest.mark.parametrize("name", NETWORKS)
def test_count_of_a_plain_export_is_torchs_own(plain: Callable[[str], bytes], name: str) -> None:
    assert count_work(plain(name)).flops == pytest.approx(torch_flops(network(name), *NETWORKS[name][1:]), rel=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_count_once_and_work_with_the_batch(plain: Callable[[str], bytes], name: str) -> None:
    one, eight = (count_work(plain(name), batch) for batch in (1, 8))
    assert one.weight_bytes == pytest.approx(4 * sum(p.numel() for p in network(name).parameters()), rel=0.01)
    assert eight.flops == 8 * one.flops
    assert eight.weight_bytes == one.weight_bytes
    assert eight.edge_bytes == 8 * one.edge_bytes
    assert eight.bytes_upper > eight.bytes_lower


def test_cifar10_network_of_the_paper(plain: Callable[[str], bytes]) -> None:
    work = count_work(plain("CIFAR-10"))
    assert 12.1e9 < work.flops < 12.5e9  # 6.1 to 6.2 giga multiply-adds
    assert work.flops_by_op["Conv"] == pytest.approx(12.1e9, rel=0.005)


def test_packaged_graph_leaves_work_out_so_it_is_not_what_is_counted() -> None:
    bundle = read_bundle(default_bundle())
    work = count_work(bundle.open_bytes(bundle.file("denoiser", "fp32", "onnx")))
    whole = torch_flops(network("digits"), 1, 8)
    assert 0.5 * whole < work.flops < whole


def limits(gflops: Mapping[str, float], gb_s: float, cache_bytes: int | None = None) -> Limits:
    products = {name: Limit("GFLOP/s", value, "numpy", "1x1x1", ()) for name, value in gflops.items()}
    return Limits("cpu", 1, products, Limit("GB/s", gb_s, "numpy", "copy", ()), cache_bytes, 1.0)


WORK = Work(1, {"Conv": 2 * 10**9}, weight_bytes=80 * 10**6, edge_bytes=20 * 10**6, activation_bytes=10**9)


def test_longer_of_compute_and_memory_is_the_limit() -> None:
    slow = time_at_limit(WORK, limits({"fp32": 100}, 50), "fp32")
    assert (slow.seconds, slow.bound) == (pytest.approx(0.02), "compute")
    fast = time_at_limit(WORK, limits({"fp32": 10_000}, 50), "fp32")
    assert (fast.seconds, fast.bound) == (pytest.approx(0.002), "memory")


@pytest.mark.parametrize(("precision", "megabytes"), [("fp32", 100), ("bf16", 60), ("fp16", 60), ("int8", 40)])
def test_weights_weigh_less_in_a_smaller_precision_and_edges_do_not(precision: str, megabytes: int) -> None:
    limit = time_at_limit(WORK, limits({precision: 1e9}, 1), precision)
    assert limit.seconds == pytest.approx(megabytes * 1e-3)


def test_weights_that_fit_into_the_cache_are_no_bound() -> None:
    cached = time_at_limit(WORK, limits({"fp32": 10_000}, 50, cache_bytes=100 * 10**6), "fp32")
    assert (cached.seconds, cached.bound) == (pytest.approx(0.0002), "compute")
    assert time_at_limit(WORK, limits({"fp32": 10_000}, 50, cache_bytes=99 * 10**6), "fp32").bound == "memory"


def test_percent_of_the_limit() -> None:
    percent, bound = percent_of_limit(0.04, WORK, limits({"fp32": 100}, 50), "fp32")
    assert (percent, bound) == (pytest.approx(50), "compute")
    assert math.isclose(percent_of_limit(0.01, WORK, limits({"fp32": 100}, 50), "fp32")[0], 200)


def test_precision_that_was_not_measured_is_refused() -> None:
    with pytest.raises(ValueError, match=r"precision: got 'int8', expected one of fp32, bf16; measure"):
        time_at_limit(WORK, limits({"fp32": 1, "bf16": 1}, 1), "int8")
