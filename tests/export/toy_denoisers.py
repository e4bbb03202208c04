"""Small denoisers written as ONNX by hand, of any rank, whose inner names are those that graphs around them may use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from ddpm_deploy.bundle import TensorSpec
from ddpm_deploy.plan import Plan
from ddpm_deploy.schedule import NoiseSchedule
from ddpm_deploy.solvers import make_plan

FLOAT = onnx.TensorProto.FLOAT
SCHEDULE = NoiseSchedule.linear(100, 1e-3, 0.2)
CLIPPED = {"clip": (-1.0, 1.0)}

# K = 1 to 5 and N = 1 to 12, in one file; without clipping a random network's picture grows, so few steps there.
PLANS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "ddim-1": ("ddim", 1, CLIPPED),
    "ddim-4": ("ddim", 4, CLIPPED),
    "ddim-12": ("ddim", 12, CLIPPED),
    "ddim-4-unclipped": ("ddim", 4, {}),
    "dpmpp_2m-4": ("dpmpp_2m", 4, CLIPPED),
    "heun-4": ("heun", 4, CLIPPED),
    "ipndm-4": ("ipndm", 4, CLIPPED | {"order": 4}),
    "unipc-12": ("unipc", 12, CLIPPED | {"order": 3}),
    "unipc-4-half-clipped": ("unipc", 4, {"clip": (-1.0, np.inf)}),
    "ddpm-12": ("ddpm", 12, CLIPPED),
    "ddpm-4-unclipped": ("ddpm", 4, {}),
    "ddim-4-eta": ("ddim", 4, CLIPPED | {"eta": 0.7}),
}


def plan_of(solver: str, steps: int, **options: Any) -> Plan:
    return make_plan(solver, SCHEDULE, steps, "trailing", "eps", **options)


def named(name: str) -> Plan:
    solver, steps, options = PLANS[name]
    return plan_of(solver, steps, **options)


def toy(shape: Sequence[int], *, learned: bool = False, steered: bool = False, weight: float = 1.0) -> onnx.ModelProto:
    """prediction = tanh(x W + t / 50 [+ steer]); with a variance, its sine as second half of the channels."""
    rng, rank = np.random.default_rng(0), len(shape)
    axes = list(range(1, rank + 1))
    values = {
        "state": weight * rng.standard_normal((shape[-1], shape[-1])).astype(np.float32) / shape[-1] ** 0.5,
        "update": np.float32(0.02),
        "clip": np.array(axes, np.int64),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "state"], ["noise"]),
        helper.make_node("Mul", ["t", "update"], ["predict"]),
        *([helper.make_node("Add", ["predict", "steer"], ["x0"])] if steered else []),
        helper.make_node("Unsqueeze", ["x0" if steered else "predict", "clip"], ["x_T"]),
        helper.make_node("Add", ["noise", "x_T"], ["samples"]),
        helper.make_node("Tanh", ["samples"], ["finite" if learned else "prediction"]),
    ]
    if learned:
        nodes.append(helper.make_node("Sin", ["noise"], ["images"]))
        nodes.append(helper.make_node("Concat", ["finite", "images"], ["prediction"], axis=1))
    out = [shape[0] * (2 if learned else 1), *shape[1:]]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info(s.name, FLOAT, s.shape) for s in toy_inputs(shape, steered)],
        [helper.make_tensor_value_info("prediction", FLOAT, ["B", *out])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def toy_inputs(shape: Sequence[int], steered: bool = False) -> tuple[TensorSpec, ...]:
    """What `toy` takes."""
    steer = [TensorSpec("steer", ("B",), "float32")] if steered else []
    return (TensorSpec("x", ("B", *shape), "float32"), TensorSpec("t", ("B",), "float32"), *steer)


def session(model: onnx.ModelProto) -> Any:
    """A bare ONNX Runtime session on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def denoise_with(
    model: onnx.ModelProto, condition: Mapping[str, np.ndarray] | None = None, channels: int | None = None
):  # type: ignore[no-untyped-def]
    """The denoiser as `Plan.run` calls it: one call of ONNX Runtime for each row."""
    opened = session(model)

    def denoise(x: np.ndarray, t: np.ndarray) -> np.ndarray:
        return opened.run(None, {"x": x, "t": t, **(condition or {})})[0][:, :channels]

    return denoise


def all_names(graph: onnx.GraphProto) -> list[str]:
    """Every tensor that the graph itself defines, bodies left out."""
    made = [name for node in graph.node for name in node.output if name]
    return [*(value.name for value in graph.input), *(tensor.name for tensor in graph.initializer), *made]


def close(got: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * max(1, np.abs(expected).max()))


def weight_bytes(graph: onnx.GraphProto) -> int:
    return sum(tensor.ByteSize() for tensor in graph.initializer)
