"""Triton: a graph of a bundle as one model of a Triton model repository.

A repository is a folder with a folder for each model, `NAME/config.pbtxt` and `NAME/1/model.onnx` or `model.plan`.
The configuration follows from the graph itself; its schema is Triton's `model_config.proto`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm_deploy.bundle import Bundle, ModelFile, TensorSpec
from ddpm_deploy.bundle.write import install_folder, write_remedy
from ddpm_deploy.errors import ExportError
from ddpm_deploy.export.onnx_signature import read_signature
from ddpm_deploy.export.pbtxt import Word, to_text

CONFIG, VERSION = "config.pbtxt", "1"
MARK = "# Written by ddpm-deploy, which replaces this folder as a whole."
MAX_BATCH_SIZE = 32  # where neither the caller nor the graph says
KINDS = ("KIND_CPU", "KIND_GPU")
TIMEOUT_ACTIONS = ("REJECT", "DELAY")
TARGETS = {"KIND_CPU": "onnxruntime-cpu", "KIND_GPU": "onnxruntime-cuda"}
DTYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
}


@dataclass(frozen=True)
class Serving:
    """How Triton queues, batches and runs a model.

    max_batch_size: of Triton's batches; None is 32 where the graph can be batched, else 0, which means that each
    request is run by itself. preferred_batch_sizes, max_queue_delay_us: as Triton waits for batches to fill.
    max_queue_size: requests beyond it are refused; 0 is no limit. timeout_us: how long a request may wait, 0 for ever;
    timeout_action: then refuse it, or put it behind all others. allow_timeout_override: requests may ask for less.
    instance_count: copies on the CPU, or on each GPU.
    """

    max_batch_size: int | None = None
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_delay_us: int = 0
    max_queue_size: int = 256
    timeout_us: int = 0
    timeout_action: str = "REJECT"
    allow_timeout_override: bool = True
    instance_kind: str = "KIND_CPU"
    instance_count: int = 1

    def __post_init__(self) -> None:
        for name, low in (("max_queue_delay_us", 0), ("max_queue_size", 0), ("timeout_us", 0), ("instance_count", 1)):
            _require_whole(name, getattr(self, name), low)
        if self.max_batch_size is not None:
            _require_whole("max_batch_size", self.max_batch_size, 0)
        for size in self.preferred_batch_sizes:
            _require_whole("preferred_batch_sizes", size, 1)
        for name, choices in (("timeout_action", TIMEOUT_ACTIONS), ("instance_kind", KINDS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected one of {', '.join(choices)}")


def write_model_repository(
    bundle: Bundle,
    out: str | os.PathLike[str],
    *,
    graph: str = "denoiser",
    precision: str = "fp32",
    target: str | None = None,
    engine: str | os.PathLike[str] | None = None,
    fixed_plan: bool = False,
    name: str | None = None,
    serving: Serving | None = None,
) -> Path:
    """Write one graph of a bundle into the model repository `out`, and return the model's folder, `out/NAME`.

    target: whose file of the graph; None is ONNX Runtime's for the kind of instance, or "tensorrt" with an engine.
    engine: a TensorRT plan built from that file, which Triton's TensorRT then runs. fixed_plan: leave out the inputs
    that have defaults, so that a `sampler` takes `x_T` alone. name: of the model; None is the bundle's and the graph's.
    Raises ValueError, BundleError, and ExportError where `out/NAME` is foreign or cannot be written.
    """
    serving = serving or Serving()
    if engine is not None and serving.instance_kind != "KIND_GPU":
        raise ValueError(f"instance_kind: got {serving.instance_kind}, expected KIND_GPU, as engines run on GPUs")
    file = bundle.file(graph, precision, target or ("tensorrt" if engine else TARGETS[serving.instance_kind]))
    if not file.path.endswith(".onnx"):
        raise ValueError(f"target: got {file.target}, whose {file.path} is no ONNX file; choose another target")
    name = _checked_name(name or f"{_plain(bundle.manifest.model.name)}_{graph}")
    files = _model_files(bundle, file, engine)
    config = _config(name, bundle, file, engine is not None, fixed_plan, serving)
    text = f"{MARK}\n{to_text(config)}"
    _install(Path(os.path.realpath(out)) / name, {CONFIG: text.encode("ascii"), **files})
    return Path(out) / name


def _config(
    name: str, bundle: Bundle, file: ModelFile, is_engine: bool, fixed_plan: bool, serving: Serving
) -> dict[str, Any]:
    graph = read_signature(bundle.open_bytes(file))
    if fixed_plan and not graph.defaults:
        raise ValueError(
            f"fixed_plan: {file.path} holds no plan of its own; leave it out, or export with a default plan"
        )
    left_out = graph.defaults if fixed_plan or is_engine else frozenset()  # an engine has frozen them
    declared = {spec.name for spec in file.inputs}  # old graphs list their weights as inputs too
    inputs = [spec for spec in graph.inputs if spec.name in declared - left_out]
    optional = graph.defaults - left_out
    batch = _batch_size(serving, file, [*inputs, *graph.outputs], optional)
    platform, backend = ("tensorrt_plan", "tensorrt") if is_engine else ("onnxruntime_onnx", "onnxruntime")
    return {
        "name": name,
        "platform": platform,
        "backend": backend,
        "max_batch_size": batch,
        "input": tuple(_tensor(spec, batch, {"optional": True} if spec.name in optional else {}) for spec in inputs),
        "output": tuple(_tensor(spec, batch) for spec in graph.outputs),
        "instance_group": {"count": serving.instance_count, "kind": Word(serving.instance_kind)},
        "dynamic_batching": _batching(serving, batch),
        "default_model_filename": "model.plan" if is_engine else "model.onnx",
        "parameters": tuple(_parameters(bundle, file)),
    }


def _tensor(spec: TensorSpec, batch: int, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Triton leaves the batch axis of a batched model out, and takes no tensor without axes."""
    dims = [axis if isinstance(axis, int) else -1 for axis in spec.shape[1 if batch else 0 :]]
    shape = {"dims": dims} if dims else {"dims": [1], **({"reshape": {"shape": []}} if batch else {})}
    return {"name": spec.name, "data_type": Word(DTYPES[spec.dtype]), **shape, **(extra or {})}


def _batch_size(serving: Serving, file: ModelFile, tensors: Sequence[TensorSpec], optional: frozenset[str]) -> int:
    """The model's max_batch_size; a batch needs a batch axis in all tensors, and Triton no optional one among them."""
    first = {spec.shape[0] if spec.shape else None for spec in tensors}
    can = not optional and len(first) == 1 and isinstance(next(iter(first)), str)
    size = serving.max_batch_size
    if size is None:
        size = MAX_BATCH_SIZE if can else 0
    if size and not can:
        raise ValueError(
            f"max_batch_size: got {size}, expected 0, as not all tensors of {file.path} have a batch axis or some are "
            "optional; send whole batches in one request, or serve another graph"
        )
    if max(serving.preferred_batch_sizes, default=0) > size:
        raise ValueError(f"preferred_batch_sizes: got {max(serving.preferred_batch_sizes)}, expected at most {size}")
    return size


def _batching(serving: Serving, batch: int) -> dict[str, Any]:
    """For a model without batches too: only Triton's batcher has a queue with limits."""
    waiting = {
        "preferred_batch_size": list(serving.preferred_batch_sizes),
        "max_queue_delay_microseconds": serving.max_queue_delay_us,
    }
    policy = {
        "timeout_action": Word(serving.timeout_action),
        "default_timeout_microseconds": serving.timeout_us,
        "allow_timeout_override": serving.allow_timeout_override,
        "max_queue_size": serving.max_queue_size,
    }
    return {**(waiting if batch else {}), "default_queue_policy": policy}


def _parameters(bundle: Bundle, file: ModelFile) -> Iterator[dict[str, Any]]:
    """Where the model comes from, which Triton hands on to whoever asks for its configuration."""
    facts = {"bundle": bundle.digest, "file": file.path, "sha256": file.sha256}
    for key, value in facts.items():
        yield {"key": f"ddpm_deploy.{key}", "value": {"string_value": value}}


def _model_files(bundle: Bundle, file: ModelFile, engine: str | os.PathLike[str] | None) -> dict[str, bytes]:
    if engine is not None:
        return {f"{VERSION}/model.plan": _read(Path(engine))}
    weights = [data for data in bundle.manifest.weights if data.path == file.weights]
    model = {f"{VERSION}/model.onnx": bundle.open_bytes(file)}
    return model | {f"{VERSION}/{data.path}": bundle.open_bytes(data) for data in weights}


def _install(target: Path, files: Mapping[str, bytes]) -> None:
    """Build the folder beside the repository, where a server that polls it does not look, if it is one file system."""
    repository = target.parent
    try:
        repository.mkdir(parents=True, exist_ok=True)
        apart = os.stat(repository).st_dev != os.stat(repository.parent).st_dev
        beside = target if apart else repository.with_name(f"{repository.name}.{target.name}")
        install_folder(target, files, _check_replaceable, beside)
    except OSError as error:
        raise ExportError(f"{target}: cannot be written: {error.strerror}; {write_remedy(error)}") from error


def _check_replaceable(target: Path) -> None:
    if not os.path.lexists(target):
        return
    names = sorted(os.listdir(target)) if target.is_dir() else []
    if not target.is_dir() or (names and not _is_ours(target / CONFIG)):
        raise ExportError(f"{target}: was not written by this package, so it is not replaced; give another name")
    foreign = sorted(set(names) - {CONFIG, VERSION})
    if foreign:
        raise ExportError(f"{target}: holds {foreign[0]!r}, which is not of this package; move it away")


def _is_ours(config: Path) -> bool:
    try:
        with open(config, "rb") as stream:
            return stream.read(len(MARK)) == MARK.encode()
    except OSError:
        return False


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ExportError(f"{path}: cannot be read: {error.strerror}; build the engine first") from error


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text)


def _checked_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", name):
        raise ValueError(f"name: got {name!r}, expected letters, digits, _, . and -, at most 128, for a folder's name")
    return name


def _require_whole(name: str, value: object, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name}: got {value!r}, expected a whole number of at least {low}")
