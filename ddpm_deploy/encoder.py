"""The encoder of a bundle: a graph that computes conditions from raw inputs, once for each request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddpm_deploy.backends import Backend, open_backend
from ddpm_deploy.backends.signature import describe
from ddpm_deploy.bundle import Bundle, Condition, ModelFile, TensorSpec
from ddpm_deploy.bundle.manifest import TORCH
from ddpm_deploy.errors import BackendUnavailable, BundleError
from ddpm_deploy.job import Conditions
from ddpm_deploy.tokenizer import Tokenizer

ROLE = "encoder"
PRECISION = "fp32"
PROMPT = "prompt"  # text, in place of the input
TOKENS = "tokens"

Array = NDArray[Any]


class Encoder:
    """Turns raw inputs into conditions; as thread-safe as its backend.

    tokenizer: makes the input `tokens` from a `prompt`, a text or one for each sample, or None.
    raw: names of its inputs. direct: names of all conditions. mixed: what a request gives instead of these, the raw
    inputs and the conditions that the encoder does not compute.
    """

    def __init__(self, backend: Backend, conditions: Sequence[Condition], tokenizer: Tokenizer | None = None) -> None:
        self.backend = backend
        self.tokenizer = tokenizer
        self.raw = [spec.name for spec in backend.inputs]
        self.direct = [condition.name for condition in conditions]
        computed = {spec.name for spec in backend.outputs}
        self.mixed = self.raw + [name for name in self.direct if name not in computed and name not in self.raw]

    def encode(self, given: Conditions, n: int | None = None) -> dict[str, Array]:
        """The conditions of raw inputs: (n, ...) each, or without the batch axis where no input has one.

        given: each input, (n, ...) or one for all. n: number of samples, where it is known. Raises ValueError.
        """
        given = self._tokenised(given)
        if set(given) != set(self.raw):
            raise ValueError(f"encode: got {_listed(given)}, expected {_listed(self.raw)}")
        arrays = {spec.name: _checked(given[spec.name], spec) for spec in self.backend.inputs}
        batches = {s.name: len(arrays[s.name]) for s in self.backend.inputs if arrays[s.name].ndim == len(s.shape)}
        if not batches:
            return {name: output[0] for name, output in self._run(arrays, 1).items()}
        n = n or max(batches.values())
        for name, size in batches.items():
            if size != n:
                raise ValueError(f"condition {name!r}: got a batch of {size}, expected {n}, or one for all")
        return self._run(arrays, n)

    def conditions(self, given: Conditions, n: int) -> Conditions:
        """What the network takes, of either of the two choices that a request for n samples has."""
        given = self._tokenised(given)
        if set(given) == set(self.direct):
            return given
        if set(given) != set(self.mixed):
            raise ValueError(
                f"condition: got {_listed(given)}, expected {_listed(self.mixed)}, for the bundle's encoder, or "
                f"{_listed(self.direct)}, as it computes them"
            )
        encoded = self.encode({name: given[name] for name in self.raw}, n)
        return {name: encoded[name] if name in encoded else given[name] for name in self.direct}

    def warmup(self) -> None:
        """Evaluate the graph once on zeros."""
        self.backend.run({s.name: np.zeros([_size(axis) for axis in s.shape], s.dtype) for s in self.backend.inputs})

    def close(self) -> None:
        """Free the backend."""
        self.backend.close()

    def _tokenised(self, given: Conditions) -> Conditions:
        """The same with tokens in place of a prompt."""
        if PROMPT not in given or PROMPT in self.raw:
            return given
        if self.tokenizer is None:
            raise ValueError("prompt: the bundle has no tokenizer; give what its encoder takes as condition")
        if TOKENS in given:
            raise ValueError("prompt: given beside tokens; give one of the two")
        rest = {name: value for name, value in given.items() if name != PROMPT}
        return {TOKENS: self.tokenizer.encode(_texts(given[PROMPT])), **rest}

    def _run(self, arrays: Mapping[str, Array], n: int) -> dict[str, Array]:
        feeds = {}
        for spec in self.backend.inputs:
            array = arrays[spec.name]
            each = array.shape[1:] if array.ndim == len(spec.shape) else array.shape
            feeds[spec.name] = np.ascontiguousarray(np.broadcast_to(array, (n, *each)))
        return self.backend.run(feeds)


def open_encoder(bundle: Bundle, *, backend: str, device: str, threads: int | None) -> Encoder | None:
    """The bundle's encoder in float32, or None where it has none.

    It runs where the denoiser runs; but torch runs no graphs, so beside it ONNX Runtime does, on the CPU.
    Raises BundleError, BackendUnavailable.
    """
    files, tokenizer = [file for file in bundle.manifest.files if file.role == ROLE], bundle.manifest.tokenizer
    for file in files:
        check_encoder(file, bundle.manifest.conditions, tokenizer)
    if not files:
        return None
    name, device = ("onnxruntime", "cpu") if backend == TORCH else (backend, device)
    try:
        opened = open_backend(name, bundle, role=ROLE, precision=PRECISION, device=device, threads=threads)
    except BackendUnavailable as error:
        raise BackendUnavailable(f"the bundle's encoder, which {name} is to run: {error}") from error
    return Encoder(opened, bundle.manifest.conditions, tokenizer)


def check_encoder(file: ModelFile, conditions: Sequence[Condition], tokenizer: Tokenizer | None = None) -> None:
    """Raise BundleError unless the graph is batch-first, takes what the tokenizer makes and gives only conditions."""
    expected = {c.name: (c.dtype, c.shape) for c in conditions}
    if not file.inputs or not file.outputs:
        raise BundleError(f"{file.path}: got an encoder without inputs or outputs; export the model again")
    for spec in (*file.inputs, *file.outputs):
        if not spec.shape or not isinstance(spec.shape[0], str):
            raise BundleError(f"{file.path}: {spec.name}: got {describe(spec)}, expected a free batch axis first")
    tokens = None if tokenizer is None else TensorSpec(TOKENS, (file.inputs[0].shape[0], tokenizer.length), "int64")
    if tokens is not None and tokens not in file.inputs:
        got = ", ".join(f"{spec.name} {describe(spec)}" for spec in file.inputs)
        raise BundleError(f"{file.path}: got inputs {got}, expected {TOKENS} {describe(tokens)} for the tokenizer")
    for spec in file.outputs:
        if expected.get(spec.name) != (spec.dtype, spec.shape[1:]):
            known = ", ".join(f"{c.name} {describe(TensorSpec(c.name, ('B', *c.shape), c.dtype))}" for c in conditions)
            raise BundleError(
                f"{file.path}: output {spec.name} {describe(spec)}: expected one of the model's conditions, "
                f"{known or 'of which there are none'}; export the model again"
            )


def _checked(value: ArrayLike, spec: TensorSpec) -> Array:
    """An input of the spec's dtype, with its batch axis or without."""
    array = np.asarray(value)
    if not np.can_cast(array.dtype, spec.dtype, "same_kind"):
        raise ValueError(f"condition {spec.name!r}: got {array.dtype}, expected {spec.dtype}")
    fits = array.ndim in (len(spec.shape), len(spec.shape) - 1) and array.size
    axes = spec.shape[len(spec.shape) - array.ndim :] if fits else ()
    if not fits or any(isinstance(axis, int) and axis != size for axis, size in zip(axes, array.shape, strict=True)):
        each = ", ".join(map(str, spec.shape[1:]))
        raise ValueError(f"condition {spec.name!r}: got shape {array.shape}, expected (n, {each}) or ({each})")
    return array.astype(spec.dtype, copy=False)


def _texts(prompt: ArrayLike) -> str | list[str]:
    return prompt if isinstance(prompt, str) else np.asarray(prompt, object).ravel().tolist()


def _size(axis: int | str) -> int:
    return axis if isinstance(axis, int) else 1


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
