"""Errors of the package, so that a caller can tell a broken file from a missing runtime.

Bad arguments raise the built-in `ValueError`; everything here derives from `DdpmDeployError`.
"""


class DdpmDeployError(Exception):
    """Base of every error that this package raises on purpose, bad arguments apart."""


class BundleError(DdpmDeployError):
    """A bundle is missing, damaged, tampered with, or of another format version."""


class BackendUnavailable(DdpmDeployError):
    """A runtime that was asked for cannot be had; the message names the command that mends it."""


class BackendError(DdpmDeployError):
    """A runtime refused a feed, failed in a call, or was used after it was closed."""


class NonFiniteError(DdpmDeployError):
    """The network predicted NaN or infinity."""


class ParityError(DdpmDeployError):
    """A backend disagrees with the float32 reference by more than its budget."""


class TrainingError(DdpmDeployError):
    """Training cannot start, continue or resume."""


class ExportError(DdpmDeployError):
    """A network cannot be turned into a graph."""


class QueueFull(DdpmDeployError):
    """The engine holds as many samples as it may; ask again after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(DdpmDeployError):
    """A request was not finished in the time that it gave."""


class EngineClosed(DdpmDeployError):
    """The engine takes no more requests, or was closed before this one was finished."""


class ShardError(DdpmDeployError):
    """A folder of shards holds another set than the one asked for, or is incomplete or damaged."""
