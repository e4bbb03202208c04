"""Which nodes of a denoiser graph do what: the products, the first and last of them, the time embedding."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx
from onnx import numpy_helper

from ddpm_deploy.errors import ExportError

STANDARD = ("", "ai.onnx")  # two names of ONNX's own operators
PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "Attention"})


@dataclass(frozen=True)
class Anatomy:
    """Sets of node numbers.

    products: where the arithmetic is. edges: nodes on the way from x with no product before them or none behind them,
    so the first and last convolution and all beyond. embedding: nodes that depend on t but not on x, up to the last
    products of that path, which project the embedding into the blocks. picture: nodes that depend on x.
    """

    products: frozenset[int]
    edges: frozenset[int]
    embedding: frozenset[int]
    picture: frozenset[int]

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> Anatomy:
        """Read a denoiser graph, whose inputs are `x`, `t` and the conditions."""
        if "x" not in {value.name for value in graph.input}:
            raise ExportError(f"graph: got inputs {[value.name for value in graph.input]}, expected 'x' among them")
        nodes = graph.node
        products = frozenset(i for i, node in enumerate(nodes) if node.op_type in PRODUCTS)
        picture = _behind(nodes, ["x"])
        timed = _behind(nodes, ["t"]) - picture
        return cls(products, _edges(nodes, products & picture, picture), _embedding(nodes, products, timed), picture)


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that the model is written in; 0 where it names none."""
    return max((int(entry.version) for entry in model.opset_import if entry.domain in STANDARD), default=0)


def consumers(graph: onnx.GraphProto) -> dict[str, list[int]]:
    """The nodes that read each tensor."""
    found: dict[str, list[int]] = {}
    for i, node in enumerate(graph.node):
        for name in dict.fromkeys(node.input):
            found.setdefault(name, []).append(i)
    return found


def lift_constants(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes into initializers, so that there is one kind of constant."""
    kept = []
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(value), node.output[0]))
        else:
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del graph.node[:]
    graph.node.extend(kept)


def name_nodes(graph: onnx.GraphProto) -> None:
    """Give every node a name of its own, after its output where it has none."""
    taken: set[str] = set()
    for node in graph.node:
        name = node.name or f"{node.op_type}:{node.output[0]}"
        while name in taken:
            name += "_"
        taken.add(name)
        node.name = name


def _edges(nodes: Iterable[onnx.NodeProto], products: frozenset[int], picture: frozenset[int]) -> frozenset[int]:
    nodes = list(nodes)
    after = _behind(nodes, [name for i in products for name in nodes[i].output])
    before = _ahead(nodes, [name for i in products for name in nodes[i].input])
    return picture - (after & before)


def _embedding(nodes: Iterable[onnx.NodeProto], products: frozenset[int], timed: frozenset[int]) -> frozenset[int]:
    nodes, products = list(nodes), products & timed
    last = products - _ahead(nodes, [name for i in products for name in nodes[i].input])
    return timed - last - _behind(nodes, [name for i in last for name in nodes[i].output])


def _behind(nodes: Iterable[onnx.NodeProto], names: Iterable[str]) -> frozenset[int]:
    """The nodes that depend on any of these tensors; nodes are sorted."""
    reached, found = set(names), set()
    for i, node in enumerate(nodes):
        if reached.intersection(node.input):
            found.add(i)
            reached.update(filter(None, node.output))
    return frozenset(found)


def _ahead(nodes: Iterable[onnx.NodeProto], names: Iterable[str]) -> frozenset[int]:
    """The nodes that any of these tensors depends on."""
    wanted, found = set(names), set()
    for i, node in reversed(list(enumerate(nodes))):
        if wanted.intersection(node.output):
            found.add(i)
            wanted.update(filter(None, node.input))
    return frozenset(found)
