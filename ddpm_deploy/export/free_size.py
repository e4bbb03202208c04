"""Graphs for pictures of any height and width that the network takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from ddpm_deploy.bundle import Manifest
from ddpm_deploy.bundle.manifest import BATCH, HEIGHT, WIDTH
from ddpm_deploy.errors import ExportError

MAX_MULTIPLE = 64
TRACE_SIZE = (4, 6)  # in multiples: different, and not 1, or they would be taken for equal or for constants
AXES = {2: HEIGHT, 3: WIDTH}

Array = NDArray[Any]


def with_free_size(manifest: Manifest, network: nn.Module, conditions: Mapping[str, Array]) -> Manifest:
    """The manifest with the number of which height and width have to be multiples, found by trying powers of two.

    network: `forward(x, t, *conditions)`. conditions: example values. Raises ExportError for samples that are no
    pictures, and for a network that takes one size only.
    """
    shape = manifest.sample_shape
    if len(shape) != 3:
        raise ExportError(f"free_size: got samples of shape {shape}, expected pictures (C, H, W)")
    steering = [torch.from_numpy(np.ascontiguousarray(array[:1])) for array in conditions.values()]
    multiple = 1
    while multiple <= MAX_MULTIPLE and not any(size % multiple for size in shape[1:]):
        if _takes(network, (shape[0], shape[1] + multiple, shape[2] + 2 * multiple), steering):
            return replace(manifest, size_multiple=multiple)
        multiple *= 2
    raise ExportError(
        f"free_size: the network takes pictures of {shape[1]}x{shape[2]} only; leave free_size out, or make it "
        "independent of the size"
    )


def resized(manifest: Manifest) -> Manifest:
    """The manifest of another size that the graphs take: one multiple higher."""
    channels, height, width = manifest.sample_shape
    return replace(manifest, sample_shape=(channels, height + (manifest.size_multiple or 0), width))


def trace_shape(manifest: Manifest) -> tuple[int, ...]:
    """The shape of the sample that the network is traced with."""
    if manifest.size_multiple is None:
        return manifest.sample_shape
    return (manifest.sample_shape[0], *(factor * manifest.size_multiple for factor in TRACE_SIZE))


def free_axes(multiple: int) -> dict[int, Any]:
    """Height and width of x for `torch.export`."""
    return {axis: multiple * torch.export.Dim(f"_{name}", min=1) for axis, name in AXES.items()}


def name_axes(model: onnx.ModelProto) -> None:
    """Call the axes of height and width so, and leave those without a name that are computed from them."""
    graph = model.graph
    found = graph.input[0].type.tensor_type.shape.dim
    names = {found[axis].dim_param: name for axis, name in AXES.items()} | {BATCH: BATCH}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in names:
                axis.dim_param = names[axis.dim_param]
            elif axis.dim_param:
                axis.Clear()


def _takes(network: nn.Module, shape: tuple[int, ...], steering: list[torch.Tensor]) -> bool:
    try:
        with torch.inference_mode():
            out = network(torch.zeros(1, *shape), torch.zeros(1), *steering)
    except Exception:  # whatever a network raises for a size that it does not take
        return False
    return tuple(out.shape[2:]) == shape[1:]
