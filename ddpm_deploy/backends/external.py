"""Large tensors that lie in a file beside their graph: checked, then put back into it.

Given a model as bytes, runtimes look for such files in the working directory, and nobody has checked their hashes. So a
runtime gets a graph with everything inside; only where that would pass the 2 GiB of one protobuf message, it gets the
graph and the verified bytes of the one file that the bundle lists for it. The walks below follow the field numbers of
onnx.proto and need no onnx package.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

from ddpm_deploy.bundle import Bundle, ModelFile
from ddpm_deploy.errors import BackendError
from ddpm_deploy.protobuf import fields, header, spans, varints

Children = Mapping[str, Mapping[int, str]]
Pieces = list[bytes | memoryview]

# message -> {field number: message inside}
CHILDREN: Children = {
    "model": {7: "main", 25: "function"},
    "main": {1: "node", 5: "tensor", 15: "sparse"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
OWN_TENSORS: Children = {"model": {7: "main"}, "main": {5: "tensor"}}
OTHER_TENSORS: Children = {**CHILDREN, "main": {1: "node", 15: "sparse"}}

TENSOR_DIMS, TENSOR_TYPE, TENSOR_NAME, TENSOR_RAW_DATA = 1, 2, 8, 9
TENSOR_VALUES = (4, 5, 6, 7, TENSOR_RAW_DATA, 10, 11)
TENSOR_EXTERNAL_DATA, TENSOR_DATA_LOCATION, EXTERNAL = 13, 14, 1
ITEM_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}  # by element type
ENTRIES = ("location", "offset", "length")
MAX_DIGITS = 15
MAX_MODEL_BYTES = 2**31 - 1

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weights:
    """A file of large tensors, already verified. name: by which graphs refer to it."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Graph:
    """An ONNX model for a runtime. weights: None where everything is inside."""

    model: bytes
    weights: Weights | None = None


def open_graph(backend: str, bundle: Bundle, file: ModelFile) -> Graph:
    """The verified graph, with its weights inside unless that is too large for one message; raises BackendError.

    Warns of a graph that was over its parity budget when it was exported.
    """
    if file.over_budget:
        _log.warning("%s: was exported over its parity budget: %s", file.path, "; ".join(file.over_budget))
    model = bundle.open_bytes(file)
    if file.weights is None:
        return Graph(model)
    stored = next(data for data in bundle.manifest.weights if data.path == file.weights)
    weights = Weights(file.weights, bundle.open_bytes(stored))
    pieces = _checked_pieces(backend, model, weights, CHILDREN)
    fits = sum(map(len, pieces)) <= MAX_MODEL_BYTES
    return Graph(b"".join(pieces)) if fits else Graph(model, weights)


def open_whole(backend: str, bundle: Bundle, file: ModelFile) -> bytes:
    """The verified graph with everything inside; BackendError where that is too large for one message."""
    graph = open_graph(backend, bundle, file)
    if graph.weights is not None:
        raise BackendError(
            f"{backend}: {file.path}: got over {MAX_MODEL_BYTES} bytes with its weights, which it cannot take from "
            "memory; use backend 'onnxruntime', or export in fp16"
        )
    return graph.model


def refuse_external_data(backend: str, model: bytes) -> None:
    """Raise BackendError if a tensor of the model, in whatever subgraph, keeps its values outside of these bytes."""
    name = _first_external(backend, model, CHILDREN)
    if name is not None:
        raise BackendError(
            f"{backend}: tensor {name!r} keeps its values in another file, expected all weights inside the model; "
            "load the bundle that it belongs to, or export with external_data=False"
        )


def check_own_tensors(backend: str, model: bytes, weights: Weights) -> None:
    """Raise BackendError unless the external tensors are initializers of the main graph, each a stretch of the file."""
    _checked_pieces(backend, model, weights, OWN_TENSORS)
    name = _first_external(backend, model, OTHER_TENSORS)
    if name is not None:
        raise BackendError(
            f"{backend}: tensor {name!r} of a subgraph keeps its values in {weights.name!r}, which is read for the "
            "main graph only; use the denoiser, or export in fp16"
        )


def _checked_pieces(backend: str, model: bytes, weights: Weights, children: Children) -> Pieces:
    try:
        return _filled(memoryview(model), "model", weights, children)
    except _BadTensorError as error:
        raise BackendError(f"{backend}: {error}; export the model again") from None
    except (ValueError, RecursionError) as error:
        raise _no_model(backend, error) from error


def _filled(message: memoryview, kind: str, weights: Weights, children: Children) -> Pieces:
    """The message, in pieces to be joined, with the values of its external tensors inside."""
    if kind == "tensor":
        return _filled_tensor(message, weights)
    pieces: Pieces = []
    for number, value, span in spans(message):
        child = children[kind].get(number)
        if child is None or not isinstance(value, memoryview):
            pieces.append(span)
        else:
            inner = _filled(value, child, weights, children)
            pieces += [header(number, sum(map(len, inner))), *inner]
    return pieces


class _BadTensorError(Exception):
    """A tensor whose external data are not as they should be."""


def _filled_tensor(message: memoryview, weights: Weights) -> Pieces:
    found = list(spans(message))
    if not any(_is_external(number, value) for number, value, _ in found):
        return [message]
    begin, size = _stretch(message, weights)
    kept: Pieces = [span for number, _, span in found if number not in (TENSOR_EXTERNAL_DATA, TENSOR_DATA_LOCATION)]
    return [*kept, header(TENSOR_RAW_DATA, size), memoryview(weights.data)[begin : begin + size]]


def _stretch(tensor: memoryview, weights: Weights) -> tuple[int, int]:
    """(offset, length) of an external tensor, whose every field is checked."""
    name, shape, kind, placed, entries = "", [], 0, 0, []
    for number, value in fields(tensor):
        if number in TENSOR_VALUES:
            raise _BadTensorError("a tensor has values both inside and in another file, expected one of the two")
        if number == TENSOR_DIMS:
            shape += list(varints(value)) if isinstance(value, memoryview) else [value]
        elif number == TENSOR_TYPE and isinstance(value, int):
            kind = value
        elif number == TENSOR_NAME and isinstance(value, memoryview):
            name = bytes(value).decode(errors="replace")
        elif number == TENSOR_DATA_LOCATION and isinstance(value, int):
            placed = value
        elif number == TENSOR_EXTERNAL_DATA and isinstance(value, memoryview):
            entries.append(tuple(_text(part) for _, part in fields(value)))
    expected = math.prod(shape) * ITEM_BYTES.get(kind, 0)
    begin, size = _named(name, entries, weights.name)
    if placed != EXTERNAL or size != expected or not size:
        raise _BadTensorError(f"tensor {name!r}: got {size} bytes in another file, expected {expected} for {shape}")
    if begin + size > len(weights.data):
        raise _BadTensorError(
            f"tensor {name!r}: ends at {begin + size} of {weights.name!r}, which has {len(weights.data)} bytes"
        )
    return begin, size


def _named(tensor: str, entries: list[tuple[str, ...]], file: str) -> tuple[int, int]:
    """(offset, length) of the entries `location`, `offset` and `length`, each there once."""
    found = dict(entry for entry in entries if len(entry) == 2)
    if len(found) != len(entries) or sorted(found) != sorted(ENTRIES):
        raise _BadTensorError(
            f"tensor {tensor!r}: external data: got {entries}, expected {', '.join(ENTRIES)} once each"
        )
    if found["location"] != file:
        raise _BadTensorError(f"tensor {tensor!r}: location: got {found['location']!r}, expected {file!r}")
    numbers = [found[key] for key in ("offset", "length")]
    if not all(text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS for text in numbers):
        raise _BadTensorError(f"tensor {tensor!r}: offset, length: got {numbers}, expected whole numbers")
    return int(numbers[0]), int(numbers[1])


def _text(value: int | memoryview) -> str:
    return str(value) if isinstance(value, int) else bytes(value).decode(errors="replace")


def _first_external(backend: str, model: bytes, children: Children) -> str | None:
    try:
        return _external_tensor(memoryview(model), "model", children)
    except (ValueError, RecursionError) as error:
        raise _no_model(backend, error) from error


def _external_tensor(message: memoryview, kind: str, children: Children) -> str | None:
    name, external = "", False
    for number, value in fields(message):
        if kind == "tensor":
            external |= _is_external(number, value)
            if number == TENSOR_NAME and isinstance(value, memoryview):
                name = bytes(value).decode(errors="replace")
        elif number in children[kind] and isinstance(value, memoryview):
            inner = _external_tensor(value, children[kind][number], children)
            if inner is not None:
                return inner
    return name if external else None


def _is_external(number: int, value: int | memoryview) -> bool:
    return number == TENSOR_EXTERNAL_DATA or (number == TENSOR_DATA_LOCATION and value != 0)


def _no_model(backend: str, error: Exception) -> BackendError:
    return BackendError(f"{backend}: cannot load the model: got bytes that are no ONNX model ({error})")
