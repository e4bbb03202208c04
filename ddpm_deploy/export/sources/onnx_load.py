"""Loading an ONNX file that nobody vouches for: whole, checked, with its weights inside, at an opset of today."""

from __future__ import annotations

import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from onnx import TensorProto, numpy_helper

from ddpm_deploy.errors import ExportError
from ddpm_deploy.export.anatomy import STANDARD, opset_of
from ddpm_deploy.export.sources.files import PLAIN_NAME
from ddpm_deploy.export.targets import OPSETS
from ddpm_deploy.export.weights import is_large

MIN_IR = 8  # from 4 on weights need not be inputs too
MAX_MESSAGE_BYTES = 2**31 - 1  # one protobuf message
LOCATION, OFFSET, LENGTH = "location", "offset", "length"
KNOWN_KEYS = {LOCATION, OFFSET, LENGTH, "checksum", "basepath"}
FLOAT_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def load_onnx(path: Path) -> onnx.ModelProto:
    """Read the file and the weights beside it; raises ExportError that names what is wrong.

    Weights in other files must lie in the same folder, in plain files, within their bounds. Functions are inlined, the
    standard operators get their short name, and an opset below 18 is brought there.
    """
    model = _parse(path)
    taken: Counter[str] = Counter()
    for tensor in tensors_of(model.graph, model.functions):
        _check_tensor(tensor, path, taken)
    for named in (*model.opset_import, *_nodes(model.graph)):
        named.domain = "" if named.domain in STANDARD else named.domain
    _check(model, path)
    model = onnx.inliner.inline_local_functions(model) if model.functions else model
    del model.training_info[:]
    model = _modern(model, path)
    model.ir_version = max(
        model.ir_version, MIN_IR, onnx.helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
    )
    return model


def tensors_of(graph: onnx.GraphProto, functions: object = ()) -> Iterator[TensorProto]:
    """Every constant of a graph, in subgraphs and functions too."""
    yield from graph.initializer
    yield from _constants(graph.node)
    for function in functions:  # type: ignore[attr-defined]
        yield from _constants(function.node)


def subgraphs_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in a node's attributes."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, in subgraphs too."""
    for node in graph.node:
        yield node
        for inner in subgraphs_of(node):
            yield from _nodes(inner)


def _constants(nodes: object) -> Iterator[TensorProto]:
    for node in nodes:  # type: ignore[attr-defined]
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
        for graph in subgraphs_of(node):
            yield from tensors_of(graph)


def _parse(path: Path) -> onnx.ModelProto:
    if path.stat().st_size > MAX_MESSAGE_BYTES:
        raise ExportError(f"{path}: got {path.stat().st_size} bytes, expected at most {MAX_MESSAGE_BYTES}")
    try:
        model = onnx.load_model(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own errors have no public base
        raise ExportError(f"{path}: is no whole ONNX file: {error}; copy it again") from None
    if not model.graph.node or not opset_of(model):
        raise ExportError(f"{path}: is no ONNX model: it has no nodes or no opset")
    return model


def _check(model: onnx.ModelProto, path: Path) -> None:
    """onnx's own checker; where the weights are too many for one message, on the file."""
    try:
        onnx.checker.check_model(str(path) if is_large(model) else model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ExportError(f"{path}: onnx.checker refuses it: {' '.join(str(error).split())}") from None


def _modern(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    opset = opset_of(model)
    if opset in OPSETS:
        return model
    if opset > OPSETS[-1]:
        raise ExportError(f"{path}: opset: got {opset}, expected at most {OPSETS[-1]}; export it again at that")
    try:
        return onnx.version_converter.convert_version(model, OPSETS[0])
    except Exception as error:  # the converter's C++ code raises many kinds
        raise ExportError(
            f"{path}: opset: got {opset}, expected at least {OPSETS[0]}, and onnx cannot convert it "
            f"({' '.join(str(error).split())}); export it again at opset {OPSETS[0]}"
        ) from None


# -- weights ----------------------------------------------------------------------------------------------------------


def _check_tensor(tensor: TensorProto, path: Path, taken: Counter[str]) -> None:
    """Bring external weights inside; refuse a shape that its data does not fill, NaN and infinity.

    taken: how many bytes of each file other tensors have, so that a few bytes cannot stand for gigabytes.
    """
    where = f"{path}: {tensor.name or 'a constant'}"
    if tensor.data_location == TensorProto.EXTERNAL:
        _embed(tensor, path.parent, where, taken)
    if any(axis < 0 for axis in tensor.dims):
        raise ExportError(f"{where}: got shape {list(tensor.dims)}; the file is damaged")
    try:
        values = _values(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise ExportError(f"{where}: its data does not fill its shape: {error}; the file is damaged") from None
    if values is not None and not np.isfinite(values).all():
        raise ExportError(f"{where}: holds NaN or infinity; the training diverged or the file is damaged")


def _values(tensor: TensorProto) -> np.ndarray | None:
    """Weights worth a look: those of a float type with more than one element, as minus infinity may be a mask."""
    if tensor.raw_data and _packed_bytes(tensor) != len(tensor.raw_data):
        raise ValueError(f"got {len(tensor.raw_data)} bytes for shape {list(tensor.dims)}")
    if tensor.data_type not in FLOAT_TYPES or not tensor.dims:
        return None
    with np.errstate(over="ignore"):
        values: np.ndarray = numpy_helper.to_array(tensor).astype(np.float32)
    return np.where(np.isneginf(values), 0, values)


def _packed_bytes(tensor: TensorProto) -> int:
    """How many bytes a shape takes; types of less than a byte share them."""
    count = math.prod(tensor.dims)
    name = TensorProto.DataType.Name(tensor.data_type)
    if name.endswith(("INT4", "FLOAT4E2M1")):
        return (count + 1) // 2
    if name.endswith("INT2"):
        return (count + 3) // 4
    return count * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _embed(tensor: TensorProto, folder: Path, where: str, taken: Counter[str]) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    unknown = sorted(set(entries) - KNOWN_KEYS)
    if unknown or LOCATION not in entries:
        raise ExportError(f"{where}: external data: got keys {sorted(entries)}, expected {sorted(KNOWN_KEYS)}")
    name = entries[LOCATION]
    if not re.fullmatch(PLAIN_NAME, name):
        raise ExportError(f"{where}: external data: got location {name!r}, expected a plain name in the same folder")
    offset, needed = _whole(entries, OFFSET, where), _packed_bytes(tensor)
    length = _whole(entries, LENGTH, where) if LENGTH in entries else needed
    if length != needed:
        raise ExportError(f"{where}: external data: got length {length}, expected {needed} for {list(tensor.dims)}")
    taken[name] += length
    tensor.raw_data = _read_range(folder / name, offset, length, where, taken[name])
    tensor.ClearField("external_data")
    tensor.data_location = TensorProto.DEFAULT


def _whole(entries: dict[str, str], key: str, where: str) -> int:
    text = entries.get(key, "0")
    if not re.fullmatch(r"[0-9]{1,19}", text):
        raise ExportError(f"{where}: external data: got {key} {text!r}, expected a whole number")
    return int(text)


def _read_range(file: Path, offset: int, length: int, where: str, taken: int) -> bytes:
    """Bytes of a plain file with one name; a link could lead anywhere. taken: by all tensors up to this one."""
    try:
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError as error:
        raise ExportError(f"{where}: external data: {file.name}: {error.strerror}; expected a plain file") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1 or file.is_symlink():
        os.close(descriptor)
        raise ExportError(
            f"{where}: external data: {file.name}: is a link or no file; expected a plain file of one name"
        )
    with open(descriptor, "rb") as stream:
        if offset + length > status.st_size:
            raise ExportError(
                f"{where}: external data: {file.name}: got bytes {offset} to {offset + length}, but it is "
                f"{status.st_size} bytes long; copy it again"
            )
        if taken > status.st_size:
            raise ExportError(
                f"{where}: external data: {file.name}: its tensors take {taken} bytes of {status.st_size}, so they "
                "overlap; write each of them once"
            )
        stream.seek(offset)
        return stream.read(length)
