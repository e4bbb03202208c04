"""Refuse ONNX models whose weights lie in other files.

ONNX Runtime and OpenVINO, given a model as bytes, look for such files in the working directory: nobody has checked
their hashes. The walk below follows the field numbers of onnx.proto and needs no onnx package.
"""

from __future__ import annotations

from ddpm_deploy.errors import BackendError
from ddpm_deploy.protobuf import fields

# message -> {field number: message inside}
CHILDREN = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
TENSOR_NAME = 8
TENSOR_EXTERNAL_DATA = 13
TENSOR_DATA_LOCATION = 14


def refuse_external_data(backend: str, model: bytes) -> None:
    """Raise BackendError if a tensor of the model, in whatever subgraph, keeps its values outside of these bytes."""
    try:
        name = _external_tensor(memoryview(model), "model")
    except (ValueError, RecursionError) as error:
        raise BackendError(f"{backend}: cannot load the model: got bytes that are no ONNX model ({error})") from error
    if name is not None:
        raise BackendError(
            f"{backend}: tensor {name!r} keeps its values in another file, expected all weights inside the model; "
            "export with external_data=False"
        )


def _external_tensor(message: memoryview, kind: str) -> str | None:
    name, external = "", False
    for number, value in fields(message):
        if kind == "tensor":
            external |= number == TENSOR_EXTERNAL_DATA or (number == TENSOR_DATA_LOCATION and value != 0)
            if number == TENSOR_NAME and isinstance(value, memoryview):
                name = bytes(value).decode(errors="replace")
        elif number in CHILDREN[kind] and isinstance(value, memoryview):
            inner = _external_tensor(value, CHILDREN[kind][number])
            if inner is not None:
                return inner
    return name if external else None
