"""A denoiser graph in int8: static quantisation, written as QuantizeLinear and DequantizeLinear (QDQ) pairs.

The convolutions and matrix products with weights are quantised, except the first and the last and those of the time
embedding; normalisation, softmax, products of two activations and everything elementwise stay in float32.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorsData

from ddpm_deploy.errors import ExportError
from ddpm_deploy.export.anatomy import Anatomy, consumers, lift_constants, name_nodes
from ddpm_deploy.export.evaluate import reductions
from ddpm_deploy.export.targets import Int8

OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

Array = NDArray[Any]
Ranges = Mapping[str, tuple[float, float]]


def quantise(
    model: onnx.ModelProto,
    calibration: Sequence[Mapping[str, Array]],
    *,
    form: Int8,
    keep_float: Collection[str] = (),
) -> onnx.ModelProto:
    """A copy with int8 products; inputs and outputs stay float32.

    calibration: feeds whose activations give the ranges. form: as the runtime wants it, see `Target`.
    keep_float: names among `layers(model)` to leave alone.
    """
    return insert(model, activation_ranges(model, calibration), form=form, keep_float=keep_float)


def layers(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the nodes that can be quantised, in the order of the graph."""
    named = prepared(model)
    weights = {tensor.name for tensor in named.graph.initializer}
    anatomy = Anatomy.of(named.graph)
    return tuple(
        node.name
        for i, node in enumerate(named.graph.node)
        if i in anatomy.picture - anatomy.edges and node.op_type in OPERATORS and node.input[1] in weights
    )


def activation_ranges(model: onnx.ModelProto, calibration: Sequence[Mapping[str, Array]]) -> Ranges:
    """Smallest and largest value of each tensor that the layers read or write, over all feeds."""
    if not calibration:
        raise ValueError("calibration: got no feeds, expected at least one")
    named, wanted = prepared(model), set(layers(model))
    if not wanted:
        raise ExportError("int8: the graph has no product with weights but the first and the last; stay with fp32")
    ends = [(node.input[0], node.output[0]) for node in named.graph.node if node.name in wanted]
    names = list(dict.fromkeys(name for pair in ends for name in pair))
    with reductions(named, names, ("ReduceMin", "ReduceMax")) as run:
        found = [run(feeds) for feeds in calibration]
    ranges = {name: (min(f[name][0] for f in found), max(f[name][1] for f in found)) for name in names}
    for name, (low, high) in ranges.items():
        if not np.isfinite([low, high]).all():
            raise ExportError(f"{name}: got values from {low:g} to {high:g} in calibration, expected finite ones")
    return ranges


def insert(model: onnx.ModelProto, ranges: Ranges, *, form: Int8, keep_float: Collection[str] = ()) -> onnx.ModelProto:
    """As `quantise`, with ranges that are known already."""
    named, found = prepared(model), layers(model)
    unknown = set(keep_float) - set(found)
    if unknown:
        raise ValueError(f"keep_float: got {min(unknown)!r}, expected names of layers such as {', '.join(found[:3])}")
    chosen = [name for name in found if name not in keep_float]
    if not chosen:
        return named
    quantised = _quantised(named, chosen, ranges, form)
    _free_other_readers(quantised.graph, set(chosen), form.rounded_outputs)
    return _tidied(quantised, model)


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose nodes have names of their own and whose constants are initializers."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    lift_constants(copy.graph)
    name_nodes(copy.graph)
    return copy


def _quantised(model: onnx.ModelProto, chosen: Sequence[str], ranges: Ranges, form: Int8) -> onnx.ModelProto:
    symmetric = form.symmetric
    options: dict[str, Any] = {"WeightSymmetric": True, "ActivationSymmetric": symmetric, "QuantizeBias": not symmetric}
    if not form.rounded_outputs:
        options["OpTypesToExcludeOutputQuantization"] = list(OPERATORS)
    ends = {name: tuple(np.array(bound, np.float32) for bound in bounds) for name, bounds in ranges.items()}
    with _root_log_left_alone():
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=not symmetric,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, ends),
            nodes_to_quantize=list(chosen),
            nodes_to_exclude=[],
            op_types_to_quantize=list(OPERATORS),
            extra_options=options,
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    return quantizer.model.model


@contextmanager
def _root_log_left_alone() -> Iterator[None]:
    """The library logs through the root logger, whose first use would give it a handler that prints."""
    handler = logging.NullHandler()
    logging.root.addHandler(handler)
    try:
        yield
    finally:
        logging.root.removeHandler(handler)


def _free_other_readers(graph: onnx.GraphProto, chosen: Collection[str], rounded_outputs: bool) -> None:
    """Let readers that are not quantised have the tensor itself, unless it is the rounded output of a layer.

    The library gives every reader the rounded one, also the normalisation and the sum beside a 1x1 shortcut.
    """
    makers = {name: node for node in graph.node for name in node.output}
    readers = consumers(graph)
    for node in graph.node:
        rounded = node.op_type == "DequantizeLinear" and makers.get(node.input[0])
        if not rounded or rounded.op_type != "QuantizeLinear":
            continue
        source = rounded.input[0]
        if rounded_outputs and source in makers and makers[source].name in chosen:
            continue
        for i in readers.get(node.output[0], ()):
            reader = graph.node[i]
            if reader.name not in chosen:
                reader.input[:] = [source if name == node.output[0] else name for name in reader.input]


def _tidied(quantised: onnx.ModelProto, model: onnx.ModelProto) -> onnx.ModelProto:
    """The model's own producer and metadata instead of the library's."""
    quantised.producer_name, quantised.producer_version = model.producer_name, model.producer_version
    del quantised.metadata_props[:]
    quantised.metadata_props.extend(model.metadata_props)
    return quantised
