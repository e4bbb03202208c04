"""Large tensors moved out of the graphs into one file, which they share: each distinct tensor is stored once."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterable, Iterator

import onnx
from onnx import TensorProto, helper, numpy_helper

from ddpm_deploy.backends.external import ITEM_BYTES, Weights

SHARED_NAME = "weights.bin"
MIN_BYTES = 2**10  # of a tensor that is moved
ALIGNMENT_BYTES = 2**12  # a page of memory
MAX_GRAPH_BYTES = 2**31 - 2**24  # one protobuf message ends at 2 GiB; some of it is needed for the nodes


def share_weights(models: Iterable[onnx.ModelProto]) -> bytes:
    """Move the large tensors of these models, loop bodies included, into one file, `SHARED_NAME`; gives its contents.

    Equal tensors, as those of a denoiser and of the sampler around it, become one.
    """
    file = _File()
    for model in models:
        given = {value.name for value in model.graph.input}  # the default of an input stays
        for tensor in _initializers(model.graph):
            if _size_bytes(tensor) >= MIN_BYTES and tensor.name not in given:
                tensor.CopyFrom(file.moved(tensor))
    return file.contents()


def is_shared(model: onnx.ModelProto) -> bool:
    """Whether some tensors of the model lie in another file."""
    return any(tensor.data_location == TensorProto.EXTERNAL for tensor in _initializers(model.graph))


def is_large(model: onnx.ModelProto) -> bool:
    """Whether the model cannot be one message with its weights inside."""
    return sum(map(_size_bytes, _initializers(model.graph))) > MAX_GRAPH_BYTES


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model of its own, of whatever size."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def in_memory(model: onnx.ModelProto) -> tuple[bytes, Weights | None]:
    """The model as a runtime opens it: one message, or two parts where that would be too large."""
    if not is_large(model):
        return model.SerializeToString(), None
    apart, file = _nodes_only(model), _File()
    for tensor in model.graph.initializer:
        apart.graph.initializer.append(tensor if _size_bytes(tensor) < MIN_BYTES else file.moved(tensor))
    return apart.SerializeToString(), Weights(SHARED_NAME, file.contents())


def without_values(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model for tools that look at its nodes only: itself, or a large one's copy whose weights are inputs."""
    if not is_large(model):
        return model
    slim = _nodes_only(model)
    for tensor in model.graph.initializer:
        if _size_bytes(tensor) < MIN_BYTES:
            slim.graph.initializer.append(tensor)
        else:
            slim.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return slim


class _File:
    """What the file of large tensors will hold."""

    def __init__(self) -> None:
        self._stream = io.BytesIO()
        self._places: dict[bytes, int] = {}

    def moved(self, tensor: TensorProto) -> TensorProto:
        """The tensor with its values in the file, where they are put unless they are there."""
        data = tensor.raw_data or numpy_helper.to_array(tensor).tobytes()
        key = hashlib.sha256(data).digest()
        if key not in self._places:
            self._stream.write(bytes(-self._stream.tell() % ALIGNMENT_BYTES))
            self._places[key] = self._stream.tell()
            self._stream.write(data)
        apart = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        apart.data_location = TensorProto.EXTERNAL
        for name, entry in (("location", SHARED_NAME), ("offset", self._places[key]), ("length", len(data))):
            apart.external_data.add(key=name, value=str(entry))
        return apart

    def contents(self) -> bytes:
        return self._stream.getvalue()


def _nodes_only(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without the initializers of the graph."""
    graph = model.graph
    bare = helper.make_graph(graph.node, graph.name, graph.input, graph.output, value_info=graph.value_info)
    bare.sparse_initializer.extend(graph.sparse_initializer)
    return helper.make_model(
        bare, ir_version=model.ir_version, opset_imports=model.opset_import, functions=model.functions
    )


def _initializers(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """Of the graph and of the graphs inside its nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _initializers(inner)


def _size_bytes(tensor: TensorProto) -> int:
    """Of the values; 0 for texts and for numbers of less than a byte, which stay where they are."""
    return math.prod(tensor.dims) * ITEM_BYTES.get(tensor.data_type, 0)
