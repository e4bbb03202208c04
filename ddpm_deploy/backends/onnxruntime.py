"""ONNX Runtime: CPU, CUDA and any other execution provider that its build has.

Options, on CUDA: those of `backends.cuda`. A bundle that has the `step` graph for ONNX Runtime on CUDA gets a loop."""

from __future__ import annotations

import contextlib
import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_deploy.backends.base import (
    Availability,
    Backend,
    GuardedBackend,
    device_index,
    one_line,
    usable_cpus,
)
from ddpm_deploy.backends.cuda import LOOP_OPTIONS, Device, Evaluator, open_loop
from ddpm_deploy.backends.external import Weights, check_own_tensors, open_graph, refuse_external_data
from ddpm_deploy.backends.mapped import spilled
from ddpm_deploy.backends.signature import check_signature
from ddpm_deploy.bundle import Bundle, ModelFile, TensorSpec
from ddpm_deploy.errors import BackendError, BackendUnavailable

# From 1.32 on it sends usage data unless it is told not to, and its uploader thread hangs forked children at exit.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

from ddpm_deploy.backends.onnxruntime_plugins import plugin_device

if not hasattr(onnxruntime, "InferenceSession"):
    raise ImportError("onnxruntime is only partly there, as when one of two packages that share it was removed")

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TARGETS = {CPU: "onnxruntime-cpu", CUDA: "onnxruntime-cuda"}  # other providers read the portable file
OPTIONS = frozenset(LOOP_OPTIONS)
FILES = {"tf32": "fp32"}  # whose file a precision reads, where it is not its own
REMEDY_CUDA = "pip uninstall -y onnxruntime && pip install 'ddpm-deploy[gpu]'"
DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
    "tensor(uint8)": "uint8",
}
SPIN_US = 100  # longer than any gap within a call; its default is some 16 ms, a core taken from whatever runs beside
SPIN_SINCE = (1, 27)
COMPUTE_OPS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Attention", "GroupNorm", "QLinearConv", "MatMulInteger"}


class OnnxRuntimeBackend(GuardedBackend):
    """One session, shared by all threads: calls run side by side and share its pool of `threads` workers.

    Workers spin for `SPIN_US` before they sleep: they are at hand for the next operator and for the next call of a
    loop, and take no time from their neighbours.
    """

    name = "onnxruntime"

    @classmethod
    def from_bytes(
        cls,
        model: bytes,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        precision: str = "fp32",
        device: str = "cpu",
        threads: int | None = None,
        weights: Weights | None = None,
    ) -> OnnxRuntimeBackend:
        """Open an ONNX model held in memory; precision only labels it, as the graph says what is computed.

        weights: the large tensors of a model that would be over 2 GiB with them.
        """
        check_tensors(model, weights)
        return cls._open(model, inputs, outputs, precision, device, threads, weights)

    @classmethod
    def _open(
        cls,
        model: bytes | Path,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        precision: str,
        device: str,
        threads: int | None,
        weights: Weights | None = None,
    ) -> OnnxRuntimeBackend:
        """A path is of a graph whose tensors were checked."""
        provider, options = provider_for(device, precision)
        threads = threads or usable_cpus()
        session, placement = open_session(model, weights, provider, options, threads)
        defaulted = check_session(session, inputs, outputs)
        details = {
            "version": onnxruntime.__version__,
            "providers": session.get_providers(),
            "placement": _described(placement) or f"providers {', '.join(session.get_providers())}",
        }
        return cls(
            session,
            inputs,
            outputs,
            device=device,
            precision=precision,
            threads=threads,
            batch_invariant=provider == CPU,
            details=details,
            optional=[argument.name for argument in defaulted],
        )

    def _evaluate(self, runtime: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, runtime.run(names, feeds), strict=True))


def availability() -> Availability:
    """CUDA is listed when this build has it; whether it works is seen only by opening a session."""
    providers = onnxruntime.get_available_providers()
    devices, precisions = (("cpu", "cuda"), ("fp32", "tf32")) if CUDA in providers else (("cpu",), ("fp32",))
    return Availability("onnxruntime", True, version=onnxruntime.__version__, devices=devices, precisions=precisions)


def load(
    bundle: Bundle,
    *,
    role: str,
    precision: str,
    device: str,
    threads: int | None,
    options: Mapping[str, Any],
) -> Backend:
    """Open the bundle's file for ONNX Runtime, from the very bytes whose hash was checked."""
    resident = _provider(device) == CUDA and device != CUDA
    if options and not resident:
        raise ValueError(f"options: {', '.join(sorted(options))}: for CUDA devices only, got device {device!r}")
    file = bundle.file(role, FILES.get(precision, precision), TARGETS.get(_provider(device)))
    with _ready(bundle, file, _provider(device)) as (model, weights):
        backend = OnnxRuntimeBackend._open(model, file.inputs, file.outputs, precision, device, threads, weights)
    if resident and role == "denoiser":
        _make_resident(backend, bundle, options)
    return backend


@contextmanager
def _ready(bundle: Bundle, file: ModelFile, provider: str) -> Iterator[tuple[bytes | Path, Weights | None]]:
    """The verified graph, as a session needs it; other providers than ours may read a file once it is gone."""
    graph = open_graph(OnnxRuntimeBackend.name, bundle, file)
    check_tensors(graph.model, graph.weights)
    if graph.weights is not None or provider not in TARGETS:
        yield graph.model, graph.weights
        return
    holder = [graph.model]
    del graph
    with spilled(holder.pop()) as model:
        yield model, None


def _make_resident(backend: OnnxRuntimeBackend, bundle: Bundle, options: Mapping[str, Any]) -> None:
    """Give the backend a loop around the bundle's `step` graph."""
    index = device_index(backend.device) or 0

    def evaluator(device: Device) -> Evaluator:
        return step_evaluator(bundle, backend.precision, backend.device, backend.threads, device)

    backend.loop, about = open_loop(OnnxRuntimeBackend.name, index, evaluator, options)
    backend.details = {**backend.details, "loop": about}


def step_evaluator(bundle: Bundle, precision: str, place: str, threads: int, device: Device) -> Evaluator:
    """The bundle's `step` graph on a loop's device; on CUDA in a session that captures graphs on the loop's stream.

    BundleError where the bundle has no such graph.
    """
    from ddpm_deploy.backends.cuda.onnxruntime_evaluator import OnnxRuntimeEvaluator

    provider, options = provider_for(place, precision)
    file = bundle.file("step", FILES.get(precision, precision), TARGETS.get(provider))
    captures = provider == CUDA
    if captures:
        options |= {"user_compute_stream": str(device.stream), "enable_cuda_graph": "1"}
    with _ready(bundle, file, provider) as (model, weights):
        session, _ = open_session(model, weights, provider, options, threads)
    check_session(session, file.inputs, file.outputs)
    return OnnxRuntimeEvaluator(session, file.inputs, captures=captures)


def provider_for(device: str, precision: str = "fp32") -> tuple[str, dict[str, str]]:
    """The execution provider and its options for a device, or for the provider named in its place."""
    provider = _provider(device)
    if precision == "tf32" and provider != CUDA:
        raise BackendUnavailable(f"onnxruntime: {device}: only CUDA devices compute in tf32; use precision 'fp32'")
    tf32 = {"use_tf32": str(int(precision == "tf32"))}
    options = {} if provider in (device, CPU) else {"device_id": str(device_index(device)), **tf32}
    if provider not in onnxruntime.get_available_providers() and plugin_device(provider) is None:
        have = ", ".join(onnxruntime.get_available_providers())
        remedy = f"run {REMEDY_CUDA}" if provider == CUDA else "install the onnxruntime build or plugin that has it"
        asked = provider if provider == device else f"{device}: {provider}"
        raise BackendUnavailable(f"onnxruntime: {asked} is not in this build ({have}); {remedy}")
    return provider, options


def _provider(device: str) -> str:
    if device.endswith("ExecutionProvider"):
        return device
    return CPU if device_index(device) is None else CUDA


def check_placement(provider: str, placement: Mapping[str, Mapping[str, int]]) -> None:
    """Raise BackendError if real computation was left to another provider; shape arithmetic may stay on the CPU."""
    strays = {op for name, ops in placement.items() if name != provider for op in ops} & COMPUTE_OPS
    if strays:
        raise BackendError(
            f"onnxruntime: {provider} leaves {', '.join(sorted(strays))} to another provider; "
            "use device 'cpu', or export for this device"
        )


def open_session(
    model: bytes | Path, weights: Weights | None, provider: str, options: Mapping[str, str], threads: int
) -> tuple[Any, dict[str, Counter[str]]]:
    """(a session that computes on this provider alone, the operators that it placed on each)."""
    session = _session(model, weights, provider, options, threads)
    placement = _placement(session)
    check_placement(provider, placement)
    return session, placement


def check_tensors(model: bytes, weights: Weights | None) -> None:
    """Raise BackendError where a tensor keeps its values elsewhere than in these bytes."""
    if weights is None:
        refuse_external_data(OnnxRuntimeBackend.name, model)
    else:
        check_own_tensors(OnnxRuntimeBackend.name, model, weights)


def check_session(session: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> list[Any]:
    """The inputs that have defaults; BackendError unless the session has the tensors that the manifest declares."""
    defaulted = _defaulted(session, inputs)
    check_signature(OnnxRuntimeBackend.name, "inputs", inputs, _specs([*session.get_inputs(), *defaulted]))
    check_signature(OnnxRuntimeBackend.name, "outputs", outputs, _specs(session.get_outputs()))
    return defaulted


def _session(
    model: bytes | Path, weights: Weights | None, provider: str, options: Mapping[str, str], threads: int
) -> Any:
    if provider == CUDA:
        _preload_cuda()
    settings, providers = _session_options(threads), [(provider, dict(options))]
    if provider not in onnxruntime.get_available_providers():
        settings.add_provider_for_devices([plugin_device(provider)], dict(options))
        providers = []
    if weights is not None:
        settings.add_external_initializers_from_files_in_memory([weights.name], [weights.data], [len(weights.data)])
    try:
        session = onnxruntime.InferenceSession(model, settings, providers=providers, enable_fallback=0)
    except Exception as error:
        raise BackendError(f"onnxruntime: cannot load the model: {one_line(error)}") from error
    if session.get_providers()[0] != provider:
        raise BackendUnavailable(
            f"onnxruntime: got {', '.join(session.get_providers())}, expected {provider}, whose libraries or device "
            "are missing; see the log line above and run python -m ddpm_deploy.doctor"
        )
    session.disable_fallback()
    session._model_bytes = None  # kept for the fallback, as large as the weights
    return session


def _preload_cuda() -> None:
    """Find the CUDA libraries that pip installed; ONNX Runtime prints what it misses and says it again on opening."""
    if hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()


def _session_options(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # errors come as exceptions, and need not be printed too
    spin_briefly(options)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def spin_briefly(options: Any) -> None:
    """Let workers spin for `SPIN_US`, where ONNX Runtime can be told how long; else not at all."""
    version = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(version >= SPIN_SINCE)))
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))


def _placement(session: Any) -> dict[str, Counter[str]]:
    """Operator counts per provider; empty on versions of ONNX Runtime that do not tell."""
    placement: dict[str, Counter[str]] = {}
    if hasattr(session, "get_provider_graph_assignment_info"):
        for part in session.get_provider_graph_assignment_info():
            placement.setdefault(part.ep_name, Counter()).update(node.op_type for node in part.get_nodes())
    return placement


def _described(placement: Mapping[str, Counter[str]]) -> str:
    return ", ".join(f"{ops.total()} nodes on {name}" for name, ops in placement.items())


def _defaulted(session: Any, inputs: Sequence[TensorSpec]) -> list[Any]:
    """The declared inputs that have a default; old models list their weights as such too."""
    names = {spec.name for spec in inputs}
    return [argument for argument in session.get_overridable_initializers() if argument.name in names]


def _specs(arguments: Sequence[Any]) -> list[TensorSpec]:
    return [
        TensorSpec(a.name, tuple(n if isinstance(n, int) else "free" for n in a.shape), DTYPES.get(a.type, a.type))
        for a in arguments
    ]
