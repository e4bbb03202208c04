"""Reading an ONNX graph into a runtime's network, and seeing in which types its layers really compute."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ddpm_deploy.backends.base import one_line
from ddpm_deploy.backends.external import refuse_external_data
from ddpm_deploy.backends.signature import check_signature
from ddpm_deploy.backends.tensorrt.adapter import Session
from ddpm_deploy.bundle import TensorSpec
from ddpm_deploy.errors import BackendError

LayerTypes = dict[str, dict[str, int]]

MAX_SHOWN = 3
HEAVY = ("convolution", "deconvolution", "matrix_multiply")
DTYPES = {
    "FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "INT32": "int32", "INT64": "int64",
    "BOOL": "bool", "UINT8": "uint8", "FP8": "fp8", "INT4": "int4", "FP4": "fp4",
}  # fmt: skip
NUMPY = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT32": "int32", "INT64": "int64", "BOOL": "bool"}
ENGINE_WORDS = {"fp16": ("half", "fp16"), "bf16": ("bf16", "bfloat16"), "int8": ("int8",)}


def parse(session: Session, model: bytes) -> tuple[Any, Any]:
    """(network, parser) of an ONNX model; the parser holds the weights and has to outlive the network.

    Raises BackendError, naming the nodes that the runtime does not take.
    """
    refuse_external_data(session.adapter.name, model)
    api = session.adapter.api
    network = session.builder.create_network(session.adapter.strong_flags)
    parser = api.OnnxParser(network, session.log)
    if not parser.parse(model):
        raise BackendError(f"{session.adapter.title}: cannot read the graph: {_parser_errors(parser)}")
    return network, parser


def check_inputs(title: str, network: Any, inputs: Sequence[TensorSpec]) -> None:
    """Raise BackendError unless the network has the inputs that the manifest declares."""
    found = [network.get_input(i) for i in range(network.num_inputs)]
    specs = [
        TensorSpec(
            tensor.name,
            tuple("free" if size < 0 else size for size in tensor.shape),
            NUMPY.get(tensor.dtype.name, tensor.dtype.name),
        )
        for tensor in found
    ]
    check_signature(title, "inputs", inputs, specs)


def layer_types(network: Any) -> LayerTypes:
    """How many layers of each kind compute in each type, as `{"convolution": {"fp32": 2, "fp16": 5}}`.

    A layer is int8 where its first input comes out of a DequantizeLinear of int8: the runtime fuses the two.
    """
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    quantised = {layer.get_output(0).name for layer in layers if _dequantises(layer)}
    counts: dict[str, Counter[str]] = {}
    for layer in layers:
        if layer.num_outputs and layer.get_output(0) is not None:
            counts.setdefault(layer.type.name.lower(), Counter())[_computes_in(layer, quantised)] += 1
    return {kind: dict(sorted(counts[kind].items())) for kind in sorted(counts)}


def require_precision(title: str, precision: str, types: Mapping[str, Mapping[str, int]]) -> None:
    """Raise BackendError where convolutions and matrix products are not in the precision that the file claims.

    fp32: all of them. fp16, bf16, int8: some, as sensitive layers stay in float32.
    """
    found: Counter[str] = Counter()
    for kind in HEAVY:
        found.update(types.get(kind, {}))
    if not found:
        return
    if precision == "fp32" and set(found) == {"fp32"}:
        return
    if precision != "fp32" and found[precision]:
        return
    have = ", ".join(f"{count} in {name}" for name, count in sorted(found.items()))
    expected = "all in fp32" if precision == "fp32" else f"some in {precision}"
    raise BackendError(
        f"{title}: convolutions and matrix products: got {have}, expected {expected}; "
        f"the file is no {precision} graph, export it again"
    )


def check_engine_precision(title: str, precision: str, report: str) -> bool:
    """Whether the inspector's JSON of a built engine shows types; BackendError where none of them is the precision.

    For fp32 any will do: a strongly typed engine invents no narrower type.
    """
    formats = Counter(_formats(json.loads(report).get("Layers", [])))
    words = ENGINE_WORDS.get(precision, ())
    if formats and words and not any(word in name for name in formats for word in words):
        have = ", ".join(sorted(formats))
        raise BackendError(f"{title}: the built engine has {have}, expected some {precision}; report this as a bug")
    return bool(formats)


def _formats(layers: Sequence[Any]) -> list[str]:
    """Types of all layers' tensors; TensorRT 10 says "Format/Datatype", 11 says "DataType" and "Format"."""
    named = [layer for layer in layers if isinstance(layer, dict)]
    tensors = [tensor for layer in named for key in ("Inputs", "Outputs") for tensor in layer.get(key, [])]
    return [
        str(value).lower()
        for tensor in tensors
        for key, value in tensor.items()
        if key.replace("/", "").lower() in ("formatdatatype", "datatype")
    ]


def _dequantises(layer: Any) -> bool:
    return layer.type.name == "DEQUANTIZE" and layer.get_input(0).dtype.name == "INT8"


def _computes_in(layer: Any, quantised: set[str]) -> str:
    first = layer.get_input(0) if layer.num_inputs else None
    if first is not None and layer.type.name.lower() in HEAVY and first.name in quantised:
        return "int8"
    return DTYPES.get(layer.get_output(0).dtype.name, layer.get_output(0).dtype.name.lower())


def _parser_errors(parser: Any) -> str:
    """What the parser has against which nodes, in one sentence."""
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    shown = "; ".join(dict.fromkeys(_parser_error(error) for error in errors[:MAX_SHOWN]))
    more = f"; and {len(errors) - MAX_SHOWN} more" if len(errors) > MAX_SHOWN else ""
    return f"{shown or 'the parser gave no reason'}{more}"


def _parser_error(error: Any) -> str:
    name, operator = (str(getattr(error, part, lambda: "")() or "") for part in ("node_name", "node_operator"))
    where = f"node {name!r} ({operator}): " if name else f"operator {operator}: " if operator else ""
    return f"{where}{one_line(error.desc())}"
