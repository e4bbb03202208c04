"""One face for `tensorrt` 11, `tensorrt` 10 and `tensorrt_rtx`, and their failures in one sentence each."""

from __future__ import annotations

import importlib
import logging
from collections import deque
from dataclasses import dataclass
from functools import cache
from typing import Any

from ddpm_deploy.backends.base import REMEDIES, one_line
from ddpm_deploy.backends.tensorrt.settings import TENSORRT, TENSORRT_RTX
from ddpm_deploy.errors import BackendError, BackendUnavailable

MODULES = {TENSORRT: "tensorrt", TENSORRT_RTX: "tensorrt_rtx"}
STUB = "the libraries come from NVIDIA's own index, the package on PyPI is a stub without them"
OFFER = "or use --target tensorrt-rtx, which builds without a GPU"
OLDEST = {TENSORRT: 10, TENSORRT_RTX: 1}
ALWAYS_STRONG = 11  # from this version of tensorrt on there is no other way to type a network
KEPT_ERRORS = 5

LOG_NAME = "ddpm_deploy.backends.tensorrt.runtime"  # what the runtimes themselves say
logger = logging.getLogger(LOG_NAME)


@dataclass(frozen=True)
class Adapter:
    """An imported runtime. name: "tensorrt" or "tensorrt-rtx". api: its module."""

    name: str
    version: str
    api: Any

    @property
    def title(self) -> str:
        """Name and version, for messages."""
        return f"{self.name} {self.version}"

    @property
    def strong_flags(self) -> int:
        """Flags of `create_network` under which every layer computes in the types that the graph says."""
        flag = getattr(self.api.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return 0 if flag is None else 1 << int(flag)

    def open(self) -> Session:
        """A builder; BackendUnavailable where it needs a GPU and finds none."""
        log = _logger_for(self.api)
        log.errors.clear()
        try:
            builder = self.api.Builder(log)
        except (TypeError, RuntimeError) as error:
            reason = "; ".join(log.errors) or one_line(error)
            raise BackendUnavailable(no_gpu(self, reason)) from error
        return Session(self, log, builder)

    def open_runtime(self) -> tuple[Any, Any]:
        """(its logger, what loads engines); BackendUnavailable where it finds no GPU that it can use."""
        log = _logger_for(self.api)
        log.errors.clear()
        try:
            return log, self.api.Runtime(log)
        except (TypeError, RuntimeError) as error:
            reason = "; ".join(log.errors) or one_line(error)
            raise BackendUnavailable(
                f"{self.title}: needs an NVIDIA GPU with its driver to run engines ({reason}); update the driver"
            ) from error


@dataclass(frozen=True)
class Session:
    """A builder and its logger, which holds the errors since the builder was opened."""

    adapter: Adapter
    log: Any
    builder: Any

    def fail(self, what: str, remedy: str) -> BackendError:
        """The error of a step that returned nothing, with what the runtime said of it."""
        return BackendError(f"{self.adapter.title}: {what}: {said(self.log)}; {remedy}")


def open_adapter(name: str) -> Adapter:
    """Import a runtime; BackendUnavailable with the command that mends it."""
    if name not in MODULES:
        raise ValueError(f"target: got {name!r}, expected one of {', '.join(MODULES)}")
    try:
        api = importlib.import_module(MODULES[name])
        version = str(api.__version__)
        major = int(version.partition(".")[0])
        parts = (api.Builder, api.OnnxParser, api.ILogger, api.NetworkDefinitionCreationFlag)
    except Exception as error:  # a broken installation may raise anything
        raise BackendUnavailable(_broken(name, error)) from error
    assert all(parts)
    if major < OLDEST[name]:
        raise BackendUnavailable(
            f"{name}: got version {version}, expected {OLDEST[name]} or newer; run {REMEDIES[name]}"
        )
    adapter = Adapter(name, version, api)
    if name == TENSORRT and major < ALWAYS_STRONG and not adapter.strong_flags:
        raise BackendUnavailable(f"{adapter.title}: cannot type networks strongly; run {REMEDIES[name]}")
    return adapter


def said(log: Any) -> str:
    """The errors that the runtime has logged since this was last asked, in one line."""
    errors = dict.fromkeys(log.errors)
    log.errors.clear()
    return "; ".join(errors) or "it gave no reason"


def no_gpu(adapter: Adapter, reason: str) -> str:
    """The sentence for a runtime that cannot build on this machine."""
    offer = f", {OFFER}" if adapter.name == TENSORRT else ""
    return (
        f"{adapter.title}: needs an NVIDIA GPU with its driver to build engines ({reason}); build where it runs{offer}"
    )


def _broken(name: str, error: Exception) -> str:
    """The sentence for a runtime that is not installed, or only as the stub."""
    if isinstance(error, ModuleNotFoundError) and error.name == MODULES[name]:
        reason = "is not installed"
    else:
        reason = f"is installed without its libraries ({one_line(error)})"
    if name == TENSORRT_RTX:
        return f"{name}: {reason}; run {REMEDIES[name]}"
    return f"{name}: {reason}: {STUB}; run {REMEDIES[name]}, {OFFER}"


@cache
def _logger_for(api: Any) -> Any:
    """A logger for the runtime that writes to Python's, and keeps the last errors for messages.

    One for the process: a runtime keeps its first logger as long as anything lives that was made with it.
    """
    severity = api.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.WARNING,
        severity.INFO: logging.DEBUG,
        severity.VERBOSE: logging.DEBUG - 5,
    }

    class Forward(api.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: deque[str] = deque(maxlen=KEPT_ERRORS)

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity, logging.ERROR)
            if level >= logging.ERROR:
                self.errors.append(one_line(message))
            logger.log(level, "%s", message)

    return Forward()
