"""The encoder of a model: a graph of its own that turns raw inputs into a condition, once per request."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from torch import nn

from ddpm_deploy.bundle import Condition, ModelFile, TensorSpec
from ddpm_deploy.bundle.manifest import BATCH, PORTABLE
from ddpm_deploy.errors import ExportError
from ddpm_deploy.export.graph import TRACE_BATCH, check_graph, trace
from ddpm_deploy.export.targets import BASE
from ddpm_deploy.job import example_conditions

BATCH_SIZE = 3  # that it is measured at


@dataclass(frozen=True)
class Encoder:
    """What to export. module: `forward(*inputs) -> condition`. inputs: by position, without the batch axis."""

    module: nn.Module
    inputs: tuple[Condition, ...]
    condition: str


@dataclass(frozen=True)
class TracedEncoder:
    """The graph, with example feeds and what torch makes of them."""

    model: onnx.ModelProto
    file: ModelFile
    feeds: Mapping[str, np.ndarray]
    truth: np.ndarray


def trace_encoder(encoder: Encoder, conditions: Sequence[Condition]) -> TracedEncoder:
    """Trace a copy of the module to a graph whose output is the condition of that name; ExportError if it is none."""
    wanted = {condition.name: condition for condition in conditions}
    if encoder.condition not in wanted:
        known = ", ".join(wanted) or "none"
        raise ExportError(f"encoder: got condition {encoder.condition!r}, expected one of {known}")
    condition = wanted[encoder.condition]
    module = copy.deepcopy(encoder.module).cpu().float().eval()
    inputs = tuple(TensorSpec(c.name, (BATCH, *c.shape), c.dtype) for c in encoder.inputs)
    output = TensorSpec(condition.name, (BATCH, *condition.shape), condition.dtype)
    feeds = example_conditions(encoder.inputs, BATCH_SIZE)
    traced = {name: array[:TRACE_BATCH] for name, array in feeds.items()}
    model = trace(module, traced, BASE.opset, condition.name)
    check_graph(model, inputs, output)
    with torch.inference_mode():
        truth = module(*(torch.from_numpy(array) for array in feeds.values()))
    if not isinstance(truth, torch.Tensor):
        raise ExportError(f"encoder: got an output of type {type(truth).__name__}, expected a tensor; wrap the module")
    file = ModelFile("encoder.fp32.onnx", "encoder", "fp32", PORTABLE, BASE.opset, inputs, (output,))
    return TracedEncoder(model, file, feeds, truth.numpy())
