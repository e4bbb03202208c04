"""Running a graph in memory on ONNX Runtime's CPU provider: as an evaluation, or with figures of its inner tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ddpm_deploy.backends.onnxruntime import OnnxRuntimeBackend
from ddpm_deploy.bundle import TensorSpec
from ddpm_deploy.export.emulate import emulate
from ddpm_deploy.export.weights import copied, in_memory
from ddpm_deploy.parity.next_state import Evaluate

Array = NDArray[Any]


@contextmanager
def evaluator(model: onnx.ModelProto, threads: int | None = None) -> Iterator[Evaluate]:
    """The graph as a function of its inputs; fp16 and bf16 are emulated. threads: as in `open_backend`."""
    with _opened(emulate(model), threads) as backend:
        (output,) = (spec.name for spec in backend.outputs)
        yield lambda feeds: backend.run(feeds)[output]


@contextmanager
def reductions(
    model: onnx.ModelProto, names: Sequence[str], ops: Sequence[str], threads: int | None = None
) -> Iterator[Any]:
    """A function from feeds to {name: one number for each of `ops`}, of inner float32 tensors, at no cost in memory.

    ops: reductions such as "ReduceMax", or "Difference", which is 0 for a finite tensor and NaN for any other.
    """
    probed = copied(model)
    del probed.graph.output[:]
    for k, name in enumerate(names):
        for op in ops:
            _reduce(probed.graph, op, name, f"{op}:{k}")
    with _opened(probed, threads) as backend:

        def run(feeds: Mapping[str, Array]) -> dict[str, tuple[float, ...]]:
            found = backend.run(feeds)
            return {name: tuple(float(found[f"{op}:{k}"]) for op in ops) for k, name in enumerate(names)}

        yield run


def _reduce(graph: onnx.GraphProto, op: str, name: str, output: str) -> None:
    source = name
    if op == "Difference":
        source = f"{output}:difference"
        graph.node.append(helper.make_node("Sub", [name, name], [source], source))
    reduction = "ReduceSum" if op == "Difference" else op
    graph.node.append(helper.make_node(reduction, [source], [output], output, keepdims=0))
    graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, []))


def _opened(model: onnx.ModelProto, threads: int | None) -> OnnxRuntimeBackend:
    constant = {tensor.name for tensor in model.graph.initializer}
    inputs = [_spec(value) for value in model.graph.input if value.name not in constant]
    outputs = [_spec(value) for value in model.graph.output]
    data, weights = in_memory(model)
    return OnnxRuntimeBackend.from_bytes(data, inputs, outputs, threads=threads, weights=weights)


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim)
    return TensorSpec(value.name, shape, np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name)
