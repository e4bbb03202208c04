"""The encoder of a model: a graph of its own that turns raw inputs into conditions, once per request."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from ddpm_deploy.backends.onnxruntime import OnnxRuntimeBackend
from ddpm_deploy.bundle import Condition, ModelFile, TensorSpec
from ddpm_deploy.bundle.manifest import BATCH, PORTABLE
from ddpm_deploy.encoder import TOKENS
from ddpm_deploy.errors import ExportError
from ddpm_deploy.export.anatomy import opset_of
from ddpm_deploy.export.graph import TRACE_BATCH, check_graph, trace
from ddpm_deploy.export.targets import BASE
from ddpm_deploy.job import example_conditions
from ddpm_deploy.tokenizer import Tokenizer

BATCH_SIZE = 3  # that it is measured at, at least


@dataclass(frozen=True)
class Encoder:
    """What to export.

    module: `forward(*inputs)` gives the condition, or a tuple of several; or a graph with these names, which is taken
    as it is. inputs: by position, without the batch axis. condition: the name of what it computes, or the names.
    tokenizer: makes the input `tokens` from a prompt.
    """

    module: nn.Module | onnx.ModelProto
    inputs: tuple[Condition, ...]
    condition: str | tuple[str, ...]
    tokenizer: Tokenizer | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the conditions that it computes."""
        return (self.condition,) if isinstance(self.condition, str) else tuple(self.condition)


@dataclass(frozen=True)
class TracedEncoder:
    """The graph, with example feeds and what torch makes of them."""

    model: onnx.ModelProto
    file: ModelFile
    feeds: Mapping[str, np.ndarray]
    truth: Mapping[str, np.ndarray]


def trace_encoder(encoder: Encoder, conditions: Sequence[Condition], count: int = BATCH_SIZE) -> TracedEncoder:
    """Trace a copy of the module to a graph whose outputs are the conditions of those names; ExportError if not.

    count: how many examples to measure it with.
    """
    inputs = tuple(TensorSpec(c.name, (BATCH, *c.shape), c.dtype) for c in encoder.inputs)
    outputs = tuple(TensorSpec(c.name, (BATCH, *c.shape), c.dtype) for c in _computed(encoder, conditions))
    feeds = _examples(encoder, max(count, BATCH_SIZE))
    model, values = _graph(encoder, feeds, inputs, outputs)
    check_graph(model, inputs, outputs)
    file = ModelFile("encoder.fp32.onnx", "encoder", "fp32", PORTABLE, opset_of(model), inputs, outputs)
    return TracedEncoder(model, file, feeds, dict(zip(encoder.names, values, strict=True)))


def example_tokens(tokenizer: Tokenizer, n: int) -> np.ndarray:
    """(n, length): texts of 1, 0, 2, 3 ... of the known words in turn; the second is empty, as where there is none."""
    words = tokenizer.vocabulary or ("a",)
    lengths = [0 if i == 1 else 1 + i % tokenizer.length for i in range(n)]
    starts = np.cumsum([0, *lengths[:-1]])
    texts = [
        " ".join(words[(start + k) % len(words)] for k in range(length))
        for start, length in zip(starts, lengths, strict=True)
    ]
    return tokenizer.encode(texts)


def _computed(encoder: Encoder, conditions: Sequence[Condition]) -> list[Condition]:
    known = {condition.name: condition for condition in conditions}
    for name in encoder.names:
        if name not in known:
            raise ExportError(f"encoder: got condition {name!r}, expected one of {', '.join(known) or 'none'}")
    return [known[name] for name in encoder.names]


def _examples(encoder: Encoder, count: int) -> dict[str, np.ndarray]:
    feeds = example_conditions(encoder.inputs, count)
    if encoder.tokenizer is None:
        return feeds
    tokens = next((c for c in encoder.inputs if c.name == TOKENS), None)
    if tokens != Condition(TOKENS, (encoder.tokenizer.length,), "int64"):
        raise ExportError(
            f"encoder: got a tokenizer of {encoder.tokenizer.length} tokens, but no input {TOKENS} that takes them"
        )
    return feeds | {TOKENS: example_tokens(encoder.tokenizer, count)}


def _graph(
    encoder: Encoder, feeds: Mapping[str, np.ndarray], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> tuple[onnx.ModelProto, list[np.ndarray]]:
    """The graph, and its values for the feeds: of the module itself, or of the graph where there is none."""
    names = [spec.name for spec in outputs]
    if isinstance(encoder.module, onnx.ModelProto):
        model = _with_batch(encoder.module)
        with OnnxRuntimeBackend.from_bytes(model.SerializeToString(), inputs, outputs) as backend:
            found = backend.run(dict(feeds))
        return model, [found[name] for name in names]
    module = copy.deepcopy(encoder.module).cpu().float().eval()
    model = trace(module, {name: array[:TRACE_BATCH] for name, array in feeds.items()}, BASE.opset, names)
    with torch.inference_mode():
        values = module(*(torch.from_numpy(array) for array in feeds.values()))
    return model, [_array(value) for value in (values if isinstance(values, tuple) and len(names) > 1 else (values,))]


def _with_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose free first axes have our name for the batch."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    for value in (*copied.graph.input, *copied.graph.output):
        axes = value.type.tensor_type.shape.dim
        if axes and not axes[0].HasField("dim_value"):
            axes[0].dim_param = BATCH
    return copied


def _array(value: Any) -> np.ndarray:
    if not isinstance(value, torch.Tensor):
        raise ExportError(f"encoder: got an output of type {type(value).__name__}, expected a tensor; wrap the module")
    array: np.ndarray = value.numpy()
    return array
