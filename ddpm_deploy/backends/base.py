"""The contract of a backend, the table of those there are, and the guards that all of them share."""

from __future__ import annotations

import ctypes
import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, Self, cast
from weakref import WeakSet

import numpy as np

from ddpm_deploy.backends.memory import is_out_of_memory, way_out
from ddpm_deploy.backends.signature import Feeds
from ddpm_deploy.bundle import Bundle, TensorSpec
from ddpm_deploy.errors import BackendError, BackendUnavailable

if TYPE_CHECKING:
    from ddpm_deploy.backends.cuda import Loop

BACKENDS = {
    "torch": "ddpm_deploy.backends.torch",
    "onnxruntime": "ddpm_deploy.backends.onnxruntime",
    "openvino": "ddpm_deploy.backends.openvino",
    "tensorrt": "ddpm_deploy.backends.tensorrt.full",
    "tensorrt-rtx": "ddpm_deploy.backends.tensorrt.rtx",
}

REMEDIES = {
    "torch": "pip install 'ddpm-deploy[export]'",
    "onnxruntime": "pip install 'ddpm-deploy[cpu]'",
    "openvino": "pip install 'ddpm-deploy[openvino]'",
    "tensorrt": "pip install tensorrt, with NVIDIA's package index as --extra-index-url",
    "tensorrt-rtx": "pip install 'ddpm-deploy[tensorrt]'",
}
REINSTALLS = {
    "torch": "pip install --force-reinstall torch",
    "onnxruntime": "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'ddpm-deploy[cpu]'  # or [gpu]",
    "openvino": "pip install --force-reinstall openvino",
    "tensorrt": "pip install --force-reinstall tensorrt, with NVIDIA's package index as --extra-index-url",
    "tensorrt-rtx": "pip install --force-reinstall tensorrt-rtx-cu13",
}

MAX_THREADS = 1024


class Backend(Protocol):
    """A runtime holding one graph.

    device: as it was asked for, "cpu" or "cuda:0". threads: how many one call computes with.
    batch_invariant: whether a sample's result is bitwise the same in every batch, slot and thread.
    details: versions and what the runtime really uses, for reports.
    """

    name: str
    device: str
    precision: str
    threads: int
    batch_invariant: bool
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    details: Mapping[str, Any]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Evaluate the graph; may be called from many threads, and the arrays returned are the caller's own."""

    def close(self) -> None:
        """Free the runtime; later calls raise BackendError."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


@dataclass(frozen=True)
class Availability:
    """Whether a backend can be had on this machine; if not, the reason and the command that mends it.

    devices, precisions: what it can be opened with here; other precisions need a file of the bundle made for them.
    of_files: further precisions, each with that of the file that it is a way to open.
    """

    name: str
    available: bool
    reason: str | None = None
    remedy: str | None = None
    version: str | None = None
    devices: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    of_files: Mapping[str, str] = field(default_factory=dict)


class BackendModule(Protocol):
    """What a module named in BACKENDS offers."""

    def availability(self) -> Availability:
        """Version, devices and precisions on this machine."""

    OPTIONS: Collection[str]

    def load(
        self,
        bundle: Bundle,
        *,
        role: str,
        precision: str,
        device: str,
        threads: int | None,
        options: Mapping[str, Any],
    ) -> Backend:
        """Open one graph of the bundle. options: some of OPTIONS."""


_open: WeakSet[GuardedBackend] = WeakSet()


class GuardedBackend(ABC):
    """A Backend whose `run` first refuses wrong feeds, closed backends and forked processes.

    runtime: what `_evaluate` works on; freed when the backend is closed and the last running call has returned.
    optional: inputs that have a default in the graph, so that a feed may leave them out.
    loop: the whole reverse loop on the device, where the backend has one; closed with it.
    """

    name: str

    def __init__(
        self,
        runtime: Any,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        device: str,
        precision: str,
        threads: int,
        batch_invariant: bool,
        details: Mapping[str, Any],
        optional: Collection[str] = (),
        loop: Loop | None = None,
    ) -> None:
        self.device = device
        self.loop = loop
        self.precision = precision
        self.threads = threads
        self.batch_invariant = batch_invariant
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.details = details
        self._runtime: Any = runtime
        self._pid = os.getpid()
        self._fitted = 0  # the largest batch that has run
        _open.add(self)
        self._feeds = Feeds(self.name, inputs, optional)

    @abstractmethod
    def _evaluate(self, runtime: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Evaluate checked feeds."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Evaluate the graph; BackendError for feeds that do not fit it."""
        runtime = self._runtime
        if runtime is None:
            raise BackendError(f"{self.name}: the backend is closed; open it again")
        if os.getpid() != self._pid:
            raise BackendError(
                f"{self.name}: opened in process {self._pid}, used in its fork {os.getpid()}, where its threads "
                "do not exist; open it in the child, or start children with the 'spawn' method"
            )
        self._feeds.check(feeds)
        try:
            outputs = self._evaluate(runtime, feeds)
        except Exception as error:
            way = f"; {way_out(_batch(feeds), self._fitted)}" if is_out_of_memory(error) else ""
            raise BackendError(f"{self.name}: the runtime failed: {one_line(error)}{way}") from error
        self._fitted = max(self._fitted, _batch(outputs))
        return outputs

    def close(self) -> None:
        """Let go of the runtime; calls that are running finish first."""
        self._runtime = None
        loop, self.loop = self.loop, None
        if loop is not None and os.getpid() == self._pid:
            loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _abandon_runtimes() -> None:
    """Keep runtimes alive for ever in a forked child: freeing one waits for its threads, which are not there."""
    for backend in list(_open):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(backend._runtime))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_runtimes)


def available_backends() -> dict[str, Availability]:
    """Every backend of this package, with the reason and the remedy where it cannot be had."""
    return {name: _availability(name) for name in BACKENDS}


def open_backend(
    name: str,
    bundle: Bundle,
    *,
    role: str = "denoiser",
    precision: str = "fp32",
    device: str = "cpu",
    threads: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Backend:
    """Open one graph of a bundle in a runtime, or raise BackendUnavailable; it never falls back to another.

    device: "cpu", "cuda" or "cuda:1"; onnxruntime also takes the name of an execution provider.
    threads: for one call; None takes every CPU that this process may use; torch keeps its own number, for the process.
    options: of this backend alone, see its module.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend: got {name!r}, expected one of {', '.join(BACKENDS)}")
    check_threads(threads)
    module, given = _module(name), dict(options or {})
    if unknown := given.keys() - set(module.OPTIONS):
        known = ", ".join(sorted(module.OPTIONS)) or "none"
        raise ValueError(f"options: backend {name!r} has no {min(unknown)!r}, expected some of: {known}")
    return module.load(bundle, role=role, precision=precision, device=device, threads=threads, options=given)


def check_threads(threads: int | None) -> None:
    """ValueError for a number that no runtime could start; None means all CPUs."""
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise ValueError(f"threads: got {threads}, expected 1 to {MAX_THREADS}; leave it out for all CPUs")


def one_line(error: object) -> str:
    """A runtime's message of many lines as one."""
    return " ".join(str(error).split())


def _batch(arrays: Mapping[str, np.ndarray]) -> int:
    first = next(iter(arrays.values()), None)
    return len(first) if first is not None and first.ndim else 1


def device_index(device: str) -> int | None:
    """The number of a CUDA device ("cuda" is 0), or None for "cpu"; ValueError for anything else."""
    kind, _, index = device.partition(":")
    if device == "cpu":
        return None
    if kind != "cuda" or not (index.isdecimal() or device == "cuda"):
        raise ValueError(f"device: got {device!r}, expected 'cpu', 'cuda' or 'cuda:N'")
    return int(index or 0)


def usable_cpus() -> int:
    """How many CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _module(name: str) -> BackendModule:
    try:
        return cast(BackendModule, importlib.import_module(BACKENDS[name]))
    except Exception as error:  # a broken installation may raise anything
        raise BackendUnavailable(
            f"backend {name!r}: cannot be imported: {one_line(error)}; run {_remedy(name, error)}"
        ) from error


def _availability(name: str) -> Availability:
    try:
        return _module(name).availability()
    except Exception as error:  # as above; what is wrong is to be reported, not raised
        cause = error.__cause__ or error
        return Availability(name, False, reason=one_line(cause), remedy=_remedy(name, cause))


def _remedy(name: str, error: BaseException) -> str:
    """The command that installs what is missing, or replaces what is broken."""
    return (REMEDIES if isinstance(error, ModuleNotFoundError) else REINSTALLS)[name]
