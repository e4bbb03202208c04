"""What a graph takes and gives, and feeds that are held against it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from ddpm_deploy.bundle import TensorSpec
from ddpm_deploy.errors import BackendError


class Feeds:
    """The inputs of a backend's graph. optional: those that have a default in it, so that a feed may leave them out."""

    def __init__(self, backend: str, inputs: Sequence[TensorSpec], optional: Collection[str] = ()) -> None:
        self._backend = backend
        self._inputs = tuple(inputs)
        self._expected = [(spec.name, np.dtype(spec.dtype), spec.shape) for spec in inputs]
        self._names = {spec.name for spec in inputs}
        self._required = self._names.difference(optional)

    def check(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Raise BackendError unless these are the inputs, of their dtypes and of shapes that agree."""
        if not self._required <= feeds.keys() <= self._names:
            raise BackendError(f"{self._backend}: feeds: received {_names(feeds)}, expected {self._described_inputs()}")
        sizes: dict[str, int] = {}
        for name, dtype, shape in self._expected:
            if name not in feeds:
                continue
            array = feeds[name]
            if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != len(shape):
                raise self._mismatch(name, array)
            if array.size == 0:
                raise self._mismatch(name, array, " with no axis empty")
            for expected, size in zip(shape, array.shape, strict=True):
                if size == expected:
                    continue
                if isinstance(expected, int):
                    raise self._mismatch(name, array)
                if sizes.setdefault(expected, size) != size:
                    raise self._mismatch(name, array, f" with {expected} = {sizes[expected]} as in the inputs before")

    def _described_inputs(self) -> str:
        defaulted = self._names - self._required
        return _names(self._required) + (f" (and may receive {_names(defaulted)})" if defaulted else "")

    def _mismatch(self, name: str, array: Any, where: str = "") -> BackendError:
        spec = next(spec for spec in self._inputs if spec.name == name)
        received = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        return BackendError(f"{self._backend}: input {name!r}: received {received}, expected {describe(spec)}{where}")


def describe(spec: TensorSpec) -> str:
    """Dtype and shape in one word, like `float32[B, 3, 32, 32]`."""
    return f"{spec.dtype}[{', '.join(map(str, spec.shape))}]"


def check_signature(backend: str, kind: str, declared: Sequence[TensorSpec], actual: Sequence[TensorSpec]) -> None:
    """Raise BackendError unless the loaded graph has the declared tensors; free axes may have any name."""
    if _signature(declared) != _signature(actual):
        raise BackendError(
            f"{backend}: {kind} of the graph: received {_described(actual)}, expected {_described(declared)}; "
            "the model file does not fit its manifest, export it again"
        )


def _names(names: Mapping[str, Any] | set[str]) -> str:
    return ", ".join(sorted(map(str, names))) or "nothing"


def _signature(specs: Sequence[TensorSpec]) -> dict[str, Any]:
    return {s.name: (s.dtype, [axis if isinstance(axis, int) else None for axis in s.shape]) for s in specs}


def _described(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {describe(spec)}" for spec in specs)
