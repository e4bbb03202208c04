"""From a torch module to the denoiser graph: float32, one file, a free batch, nothing of this machine in it."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from ddpm_deploy.bundle import METADATA_KEY, Condition, Manifest, TensorSpec
from ddpm_deploy.bundle.manifest import BATCH
from ddpm_deploy.errors import ExportError
from ddpm_deploy.export.anatomy import opset_of
from ddpm_deploy.export.free_size import free_axes, name_axes
from ddpm_deploy.export.targets import OPSETS
from ddpm_deploy.export.tidy import fix_reshapes
from ddpm_deploy.export.weights import MAX_GRAPH_BYTES, without_values

TRACE_BATCH = 2  # a batch of 1 would be taken for a constant
SHAPE_OPS = ("Shape", "Size")
CHATTY = ("torch.onnx", "torch.export", "torch._dynamo", "onnxscript", "onnx_ir")


class Denoiser(nn.Module):
    """A network under the contract of the graph: positional inputs, one float32 output."""

    def __init__(self, network: nn.Module, conditions: Sequence[Condition]) -> None:
        super().__init__()
        self.network = network
        self.names = tuple(condition.name for condition in conditions)

    def forward(self, x: Tensor, t: Tensor, *conditions: Tensor) -> Tensor:
        """x: (B, *S) float32. t: (B,) float32. conditions: (B, ...), in the order of the manifest."""
        out = self.network(x, t, **dict(zip(self.names, conditions, strict=True)))
        if not isinstance(out, Tensor):
            raise ValueError(f"network: got an output of type {type(out).__name__}, expected a tensor; wrap the module")
        return out.float()


def input_specs(sample_shape: Sequence[int | str], conditions: Sequence[Condition]) -> tuple[TensorSpec, ...]:
    """The inputs of the denoiser graph: `x`, `t` and the conditions."""
    steering = (TensorSpec(c.name, (BATCH, *c.shape), c.dtype) for c in conditions)
    return (TensorSpec("x", (BATCH, *sample_shape), "float32"), TensorSpec("t", (BATCH,), "float32"), *steering)


def trace(
    network: nn.Module,
    feeds: Mapping[str, np.ndarray],
    opset: int,
    outputs: Sequence[str] = ("prediction",),
    size_multiple: int | None = None,
) -> onnx.ModelProto:
    """Export with a free batch; feeds are example inputs of batch `TRACE_BATCH`, in the graph's order.

    size_multiple: see `Manifest`; then height and width of the first input are free too.
    """
    _check_arguments(network, opset)
    free = {0: torch.export.Dim(BATCH, min=1)}
    first = free if size_multiple is None else free | free_axes(size_multiple)
    named = 2 if isinstance(network, Denoiser) else len(feeds)  # the conditions of a denoiser are its *args
    rest = ((free,) * (len(feeds) - named),) if len(feeds) > named else ()
    try:
        with _quiet():
            program = torch.onnx.export(
                network,
                tuple(torch.from_numpy(array) for array in feeds.values()),
                dynamo=True,
                dynamic_shapes=(first, *(free,) * (named - 1), *rest),
                input_names=list(feeds),
                output_names=list(outputs),
                opset_version=opset,
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(f"network: torch.onnx cannot export it: {_reason(error)}") from error
    assert program is not None
    model = program.model_proto
    written = opset_of(model)
    if written != opset:
        raise ExportError(f"opset: got {written}, expected {opset}; the network needs an operator of opset {written}")
    _strip(model)
    if size_multiple is not None:
        name_axes(model)
    fix_reshapes(model)
    return model


def output_spec(manifest: Manifest) -> TensorSpec:
    """The output of the denoiser graph; a learned variance doubles its channels."""
    channels = manifest.sample_shape[0] * (2 if manifest.variance == "learned" else 1)
    return TensorSpec("prediction", (BATCH, channels, *manifest.graph_shape[1:]), "float32")


def check_graph(model: onnx.ModelProto, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Raise ExportError where the graph is not what the bundle will say that it is."""
    try:
        onnx.checker.check_model(without_values(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"graph: the exporter wrote an invalid one: {_reason(error)}") from error
    found = [_spec(value) for value in model.graph.input]
    if any(spec.shape[:1] != (BATCH,) for spec in found):
        raise ExportError(f"graph: the network fixes the batch to {found[0].shape[0]}; leave it to -1 in its reshapes")
    if found != list(inputs):
        raise ExportError(f"graph: got inputs {found}, expected {list(inputs)}; the network must use all of them")
    given = [_spec(value) for value in model.graph.output]
    if given != list(outputs):
        raise ExportError(f"graph: got outputs {given}, expected {list(outputs)}; mend the network's forward")


def shape_nodes(model: onnx.ModelProto) -> int:
    """How many nodes ask for a shape at run time; every chain of shape arithmetic starts with one."""
    return sum(node.op_type in SHAPE_OPS for node in model.graph.node)


def serialise(model: onnx.ModelProto, metadata: str) -> bytes:
    """The file's bytes with this text as its only metadata; the same graph gives the same bytes."""
    del model.metadata_props[:]
    model.metadata_props.add(key=METADATA_KEY, value=metadata)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim)
    return TensorSpec(value.name, shape, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name)


def _reason(error: BaseException) -> str:
    """The first line of what really went wrong, below the exporter's own advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().split("\n")[0]


def _strip(model: onnx.ModelProto) -> None:
    """Remove what the exporter notes about this machine's source files."""
    model.graph.doc_string = model.doc_string = ""
    for value in (model, model.graph):
        del value.metadata_props[:]
    for value in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
        value.doc_string = ""
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]


def _check_arguments(network: nn.Module, opset: int) -> None:
    if opset not in OPSETS:
        raise ValueError(f"opset: got {opset}, expected a number from {OPSETS[0]} to {OPSETS[-1]}")
    for name, parameter in network.named_parameters():
        if 4 * parameter.numel() > MAX_GRAPH_BYTES:
            raise ValueError(
                f"network: {name}: got {4 * parameter.numel()} bytes in float32, expected at most {MAX_GRAPH_BYTES}, "
                "as ONNX holds no larger tensor; split it"
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's warnings and log lines off the user's screen; its errors still come as exceptions."""
    loggers = [logging.getLogger(name) for name in CHATTY]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
