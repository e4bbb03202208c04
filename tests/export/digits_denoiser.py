"""The trained digits denoiser of the package, as a graph: a realistic network that needs no export."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from ddpm_deploy.bundle import Manifest, default_bundle, read_bundle
from ddpm_deploy.export.calibration import calibration_feeds
from ddpm_deploy.export.evaluate import evaluator
from ddpm_deploy.parity.next_state import NextState, measure_file

ROWS = 32


@cache
def manifest() -> Manifest:
    return read_bundle(default_bundle()).manifest


@cache
def model() -> onnx.ModelProto:
    """Shared: to be copied before it is changed."""
    return onnx.load_from_string(read_bundle(default_bundle()).open_bytes(manifest().files[0]))


@cache
def calibration() -> list[dict[str, np.ndarray]]:
    with evaluator(model(), 1) as reference:
        return calibration_feeds(reference, manifest(), 48)


def states() -> dict[str, np.ndarray]:
    """Five states of real trajectories, of several t, as one batch."""
    chosen = calibration()[2::10]
    return {name: np.concatenate([feeds[name] for feeds in chosen]) for name in chosen[0]}


def measured(candidate: onnx.ModelProto, rows: int = ROWS) -> NextState:
    with evaluator(model(), 1) as reference, evaluator(candidate, 1) as run:
        return measure_file(run, reference, manifest(), timesteps=rows)


def ort_run(graph: onnx.ModelProto, feeds: dict[str, np.ndarray], *, literal: bool = False) -> np.ndarray:
    """One evaluation. literal: node by node as written, nothing fused."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if literal:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def openvino_run(graph: onnx.ModelProto) -> Any:
    """The digits graph on OpenVINO, as a function of its inputs."""
    from ddpm_deploy.backends.openvino import OpenVinoBackend

    file = manifest().files[0]
    backend = OpenVinoBackend.from_bytes(graph.SerializeToString(), file.inputs, file.outputs, threads=1)
    return lambda feeds: backend.run(feeds)["prediction"]


def graph_of(
    nodes: list[onnx.NodeProto], weights: dict[str, Any], shape: tuple[int, ...], opset: int = 18
) -> onnx.ModelProto:
    """A denoiser made by hand: x (B, *shape) and t (B,) to prediction, of any shape."""
    graph = helper.make_graph(
        nodes,
        "toy",
        [
            helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["B", *shape]),
            helper.make_tensor_value_info("t", onnx.TensorProto.FLOAT, ["B"]),
        ],
        [helper.make_tensor_value_info("prediction", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def relative(value: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(value - truth) / np.linalg.norm(truth))
