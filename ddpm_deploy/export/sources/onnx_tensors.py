"""Names, shapes and types of a graph's inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

FLOAT32 = "float32"
FLOATS = (FLOAT32, "float16", "bfloat16", "float64")
INTEGERS = ("int64", "int32")
Axes = tuple[int | str | None, ...]


@dataclass(frozen=True)
class Tensor:
    """One input or output.

    element: onnx's number of the dtype. shape: numbers, a name or None where an axis is free; None where it is unknown.
    """

    name: str
    element: int
    dtype: str
    shape: Axes | None


def describe(model: onnx.ModelProto) -> tuple[list[Tensor], list[Tensor]]:
    """The inputs that are no weights, and the outputs."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [_tensor(value) for value in model.graph.input if value.name not in weights]
    return inputs, [_tensor(value) for value in model.graph.output]


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    tensor = value.type.tensor_type
    shape = tuple(_axis(axis) for axis in tensor.shape.dim) if tensor.HasField("shape") else None
    return Tensor(value.name, tensor.elem_type, _dtype(tensor.elem_type), shape)


def _dtype(element: int) -> str:
    """numpy's name; of a sequence, a text or what this version of onnx does not know only that it is no number."""
    try:
        return onnx.helper.tensor_dtype_to_np_dtype(element).name
    except KeyError:
        return f"onnx type {element}"


def _axis(axis: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if axis.HasField("dim_value"):
        return int(axis.dim_value)
    return str(axis.dim_param) or None
