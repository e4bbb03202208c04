"""OpenVINO: Intel and other x86-64 and Arm CPUs, and Intel's other devices where their plugin is there."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import openvino

from ddpm_deploy.backends.base import (
    REINSTALLS,
    Availability,
    Backend,
    GuardedBackend,
    one_line,
    usable_cpus,
)
from ddpm_deploy.backends.external import open_whole, refuse_external_data
from ddpm_deploy.backends.per_batch import PerBatch, affordable
from ddpm_deploy.backends.signature import check_signature
from ddpm_deploy.bundle import Bundle, TensorSpec
from ddpm_deploy.bundle.manifest import BATCH
from ddpm_deploy.errors import BackendError, BackendUnavailable

VERSION = openvino.__version__.partition("-")[0]
HINTS = {"fp32": "f32", "bf16": "bf16", "int8-bf16": "bf16"}
NEEDS = {"fp32": "FP32", "bf16": "BF16", "int8-bf16": "BF16"}
FILES = {"bf16": "fp32", "int8-bf16": "int8"}  # whose file a precision reads, where it is not its own
OPTIONS: frozenset[str] = frozenset()


class OpenVinoBackend(GuardedBackend):
    """A compiled model for each of some batch sizes, shared by all threads; each call has an inference request.

    Batch 1 is compiled on opening, another size when it is first seen, and past `affordable` of them a batch goes in
    pieces. A graph whose free axes are not the batch alone has one model for all shapes. Nothing is cached on disk.
    """

    name = "openvino"

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
    ) -> OpenVinoBackend:
        """Compile an ONNX model held in memory; bf16 is rounded to inside the runtime, on a CPU that computes in it."""
        core, target = _core(os.getpid()), device.upper()
        if target not in core.available_devices:
            have = ", ".join(map(str.lower, core.available_devices))
            raise BackendUnavailable(
                f"openvino: got device {device!r}, expected one of {have}; use one of these, or install its driver"
            )
        hint = precision_hint(precision, device, _capabilities(core, target))
        refuse_external_data(cls.name, model)
        config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        if target == "CPU":
            config["INFERENCE_NUM_THREADS"] = threads or usable_cpus()
        graph = _Graph(core, model, target, config, [spec.name for spec in outputs])
        check_signature(cls.name, "inputs", inputs, _specs(graph.model.inputs, inputs))
        check_signature(cls.name, "outputs", outputs, _specs(graph.model.outputs, outputs))
        sizes = affordable(len(model)) if _only_batch_is_free([*inputs, *outputs]) else 1
        first = graph.fixed(1) if sizes > 1 else graph.free()
        check_precision(precision, first.compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
        details = {
            "version": VERSION,
            "placement": f"on {', '.join(first.compiled.get_property('EXECUTION_DEVICES'))}",
            "config": config,
            "compiled": f"for up to {sizes} batch sizes" if sizes > 1 else "for all shapes at once",
        }
        runtime = PerBatch(first, graph.fixed, sizes) if sizes > 1 else first
        return cls(
            runtime,
            inputs,
            outputs,
            device=device,
            precision=precision,
            threads=threads or usable_cpus(),
            batch_invariant=target == "CPU",
            details=details,
        )

    def _evaluate(self, runtime: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        results: dict[str, np.ndarray] = runtime.infer(feeds)
        return results


class _Graph:
    """A graph to be compiled. model: as it was read, its free axes free. names: of its outputs."""

    def __init__(self, core: Any, model: bytes, target: str, config: Mapping[str, Any], names: Sequence[str]) -> None:
        self._core, self._target, self._config, self._names = core, target, config, names
        self.model = _read(core, model)

    def free(self) -> _Requests:
        """For all shapes at once."""
        return self._compiled(self.model)

    def fixed(self, batch: int) -> _Requests:
        """For one batch size, where the first axis of every input is the batch and no other is free."""
        model = self.model.clone()
        model.reshape({port: [batch, *list(port.partial_shape)[1:]] for port in model.inputs})
        return self._compiled(model)

    def _compiled(self, model: Any) -> _Requests:
        try:
            return _Requests(self._core.compile_model(model, self._target, self._config), self._names)
        except RuntimeError as error:
            raise _cannot_load(error) from error


class _Requests:
    """Idle inference requests of a compiled model; as many come to be as calls ever run at once."""

    def __init__(self, compiled: Any, names: Sequence[str]) -> None:
        self.compiled, self._names = compiled, names
        self._idle: deque[Any] = deque()

    def infer(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Results of their own memory; feeds are read where they lie, as the call returns when all is computed."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self.compiled.create_infer_request()
        results = request.infer(dict(feeds), share_inputs=True, share_outputs=False)
        self._idle.append(request)
        return {name: results[name] for name in self._names}


@cache
def _core(pid: int) -> openvino.Core:
    """One core for each process, kept for good.

    A core's CPU plugin gives its thread another signal stack, and on its end puts back the one that it found. Where
    cores overlap that may be the freed one of another core, and the next signal kills the process.
    """
    return openvino.Core()


def availability() -> Availability:
    """Devices as `open_backend` takes them; bf16 where the CPU computes in it."""
    core = _core(os.getpid())
    devices = tuple(name.lower() for name in core.available_devices)
    capabilities = _capabilities(core, "CPU")
    possible = [name for name, needed in NEEDS.items() if needed in capabilities]
    precisions = tuple(name for name in possible if FILES.get(name, name) == "fp32")
    of_files = {name: FILES[name] for name in possible if name not in precisions}
    return Availability("openvino", True, version=VERSION, devices=devices, precisions=precisions, of_files=of_files)


def load(
    bundle: Bundle,
    *,
    role: str,
    precision: str,
    device: str,
    threads: int | None,
    options: Mapping[str, Any],
) -> Backend:
    """Open the bundle's file for OpenVINO, from the very bytes whose hash was checked.

    precision: "bf16" is the fp32 file, and "int8-bf16" the int8 file, whose float part is computed in bf16.
    """
    file = bundle.file(role, FILES.get(precision, precision), "openvino")
    model = open_whole(OpenVinoBackend.name, bundle, file)
    return OpenVinoBackend.from_bytes(
        model, file.inputs, file.outputs, precision=precision, device=device, threads=threads
    )


def precision_hint(precision: str, device: str, capabilities: Collection[str]) -> str:
    """OpenVINO's name for the precision of what the graph says in float32; other precisions are in the graph itself."""
    needed = NEEDS.get(precision)
    if needed is not None and needed not in capabilities:
        raise BackendUnavailable(
            f"openvino: {device} does not compute in {precision}: got capabilities {', '.join(sorted(capabilities))}, "
            f"expected {needed} (avx512_bf16 or AMX on x86-64); use precision {_without_bf16(precision)!r}"
        )
    return HINTS.get(precision, "f32")


def check_precision(precision: str, actual: str) -> None:
    """Raise BackendUnavailable if OpenVINO took another precision than it was told."""
    expected = HINTS.get(precision, "f32")
    if actual != expected:
        other = _without_bf16(precision)
        raise BackendUnavailable(f"openvino: compiled in {actual}, expected {expected}; use precision {other!r}")


def _without_bf16(precision: str) -> str:
    return "int8" if precision.startswith("int8") else "fp32"


def _capabilities(core: Any, target: str) -> Collection[str]:
    try:
        found: Collection[str] = core.get_property(target, "OPTIMIZATION_CAPABILITIES")
    except RuntimeError as error:
        raise BackendUnavailable(
            f"openvino: the plugin of {target} does not work: {one_line(error)}; run {REINSTALLS['openvino']}"
        ) from error
    return found


def _read(core: Any, model: bytes) -> Any:
    try:
        return core.read_model(model)
    except RuntimeError as error:
        raise _cannot_load(error) from error


def _cannot_load(error: RuntimeError) -> BackendError:
    return BackendError(f"openvino: cannot load the model: {one_line(error)}")


def _only_batch_is_free(specs: Sequence[TensorSpec]) -> bool:
    return all(spec.shape[:1] == (BATCH,) and all(isinstance(axis, int) for axis in spec.shape[1:]) for spec in specs)


def _specs(ports: Sequence[Any], declared: Sequence[TensorSpec]) -> list[TensorSpec]:
    """What the graph has; a tensor of several names, as behind an Identity, goes by the declared one."""
    names = {spec.name for spec in declared}
    return [
        TensorSpec(
            min(port.get_names() & names, default=port.any_name),
            tuple("free" if axis.is_dynamic else axis.get_length() for axis in port.partial_shape),
            port.element_type.to_dtype().name,
        )
        for port in ports
    ]
