"""The inputs and outputs of an ONNX graph, read without the onnx package; field numbers are those of onnx.proto."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ddpm_deploy.bundle import TensorSpec
from ddpm_deploy.errors import ExportError
from ddpm_deploy.protobuf import fields

MODEL_GRAPH = 7
GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT = 5, 11, 12
TENSOR_NAME = 8
VALUE_NAME, VALUE_TYPE, TYPE_TENSOR, TENSOR_DTYPE, TENSOR_SHAPE, SHAPE_DIM = 1, 2, 1, 1, 2, 1
DIM_VALUE, DIM_NAME = 1, 2
LARGEST = 2**63 - 1  # above it are the negative numbers, which older exporters write for a free axis
UNNAMED = "free"
DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
}


@dataclass(frozen=True)
class Signature:
    """What a graph takes and gives; `defaults` names the inputs that may be left out."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    defaults: frozenset[str]


def read_signature(model: bytes) -> Signature:
    """The signature of a serialised ONNX model; raises ExportError for bytes that are none."""
    try:
        (graph,) = _messages(memoryview(model), MODEL_GRAPH)
        inputs, outputs = (tuple(map(_tensor, _messages(graph, number))) for number in (GRAPH_INPUT, GRAPH_OUTPUT))
        stored = {_text(tensor, TENSOR_NAME) for tensor in _messages(graph, GRAPH_INITIALIZER)}
    except (ValueError, KeyError) as error:
        raise ExportError(f"graph: got bytes that are no ONNX model ({error}); export it again") from error
    return Signature(inputs, outputs, frozenset(spec.name for spec in inputs if spec.name in stored))


def _tensor(value: memoryview) -> TensorSpec:
    (kind,) = _messages(value, VALUE_TYPE)
    (tensor,) = _messages(kind, TYPE_TENSOR)
    (dtype,) = (n for field, n in fields(tensor) if field == TENSOR_DTYPE and isinstance(n, int))
    shapes = list(_messages(tensor, TENSOR_SHAPE))
    axes = tuple(map(_axis, _messages(shapes[0], SHAPE_DIM))) if shapes else ()
    return TensorSpec(_text(value, VALUE_NAME), axes, DTYPES[dtype])


def _axis(dim: memoryview) -> int | str:
    for number, value in fields(dim):
        if number == DIM_VALUE and isinstance(value, int) and value <= LARGEST:
            return value
        if number == DIM_NAME and isinstance(value, memoryview):
            return bytes(value).decode()
    return UNNAMED


def _messages(message: memoryview, number: int) -> Iterator[memoryview]:
    return (value for field, value in fields(message) if field == number and isinstance(value, memoryview))


def _text(message: memoryview, number: int) -> str:
    (value,) = _messages(message, number)
    return bytes(value).decode()
