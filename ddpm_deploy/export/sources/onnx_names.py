"""Giving a graph our names, and float32 at its edges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from ddpm_deploy.export.sources.onnx_load import subgraphs_of
from ddpm_deploy.export.sources.onnx_tensors import FLOAT32, INTEGERS, Tensor


class Rewriter:
    """Collects new inputs and outputs, then `finish` makes the model; whatever else had such a name gets another."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        self._taken = set(_names(self._model.graph))
        self._renames: dict[str, str] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._front: list[NodeProto] = []
        self._back: list[NodeProto] = []

    def input(self, name: str, old: Tensor, shape: Sequence[int | str]) -> None:
        """A float32 input in place of a float one."""
        self._inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        steps = [] if old.dtype == FLOAT32 else [("Cast", {"to": old.element})]
        self._lead(name, old, steps)

    def time(self, name: str, old: Tensor, batch: str, *, scalar: bool) -> None:
        """A float32 input (batch,) in place of any time; whole numbers are rounded, a scalar takes the first."""
        self._inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, (batch,)))
        steps: list[tuple[str, dict[str, Any]]] = []
        if scalar:
            steps.append(("Gather", {"rank": len(old.shape or ())}))
        if old.dtype in INTEGERS:
            steps.append(("Round", {}))
        if old.dtype != FLOAT32:
            steps.append(("Cast", {"to": old.element}))
        self._lead(name, old, steps)

    def keep(self, name: str, old: Tensor, shape: Sequence[int | str]) -> None:
        """An input as it is, under a name of ours."""
        self._inputs.append(helper.make_tensor_value_info(name, old.element, shape))
        self._lead(name, old, [])

    def output(self, name: str, old: Tensor, shape: Sequence[int | str]) -> None:
        """The one float32 output in place of all others."""
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        if old.dtype == FLOAT32 and old.name in set(_produced(self._model.graph)):
            self._renames[old.name] = name
        else:
            self._back.append(helper.make_node("Cast", [old.name], [name], to=TensorProto.FLOAT))

    def finish(self) -> onnx.ModelProto:
        """The model under its new names, without notes on the machine that wrote it."""
        graph = self._model.graph
        reserved = {value.name for value in (*self._inputs, *self._outputs)}
        for name in sorted(self._taken & reserved - set(self._renames)):
            self._renames[name] = self._fresh(name)
        _rename(graph, self._renames)
        for node in self._back:
            node.input[:] = [self._renames.get(old, old) for old in node.input]
        nodes = [_copied(node) for node in (*self._front, *graph.node, *self._back)]
        for field, values in (("node", nodes), ("input", self._inputs), ("output", self._outputs)):
            graph.ClearField(field)
            getattr(graph, field).extend(values)
        for field in ("value_info", "quantization_annotation", "doc_string", "metadata_props"):
            graph.ClearField(field)
        self._model.ClearField("doc_string")
        self._model.ClearField("metadata_props")
        return self._model

    def _lead(self, name: str, old: Tensor, steps: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """From our input through the steps to the old one; none at all is a new name."""
        if not steps:
            self._renames[old.name] = name
            return
        inner = self._fresh(old.name)
        self._renames[old.name] = inner
        current = name
        for i, (kind, options) in enumerate(steps):
            result = inner if i + 1 == len(steps) else self._fresh(f"{name}_{kind.lower()}")
            self._front.append(self._node(kind, current, result, options))
            current = result

    def _node(self, kind: str, source: str, result: str, options: Mapping[str, Any]) -> NodeProto:
        if kind != "Gather":
            return helper.make_node(kind, [source], [result], **options)
        first = numpy_helper.from_array(np.zeros((1,) * options["rank"], np.int64), self._fresh("first_sample"))
        self._model.graph.initializer.append(first)
        return helper.make_node("Gather", [source, first.name], [result], axis=0)

    def _fresh(self, name: str) -> str:
        number = 1
        while f"{name}__{number}" in self._taken:
            number += 1
        self._taken.add(f"{name}__{number}")
        return f"{name}__{number}"


def _produced(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from node.output


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    """Every value's name, in subgraphs too."""
    for group in (graph.input, graph.output, graph.initializer):
        yield from (value.name for value in group)
    for node in graph.node:
        yield from node.input
        yield from node.output
        for inner in subgraphs_of(node):
            yield from _names(inner)


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for group in (graph.input, graph.output, graph.initializer, graph.value_info):
        for value in group:
            value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for inner in subgraphs_of(node):
            _rename(inner, names)


def _copied(node: NodeProto) -> NodeProto:
    """Nodes of a list that is about to be cleared."""
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.ClearField("doc_string")
    copy.ClearField("metadata_props")
    return copy
