"""A sampler over a network made of numpy, which can be held, made to fail, and asked what it was called with."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ddpm_deploy import Sampler
from ddpm_deploy import bundle as b
from ddpm_deploy.backends.base import GuardedBackend
from ddpm_deploy.encoder import Encoder
from ddpm_deploy.schedule import NoiseSchedule
from ddpm_deploy.tokenizer import Tokenizer

SHAPE = (2, 4, 4)
PATIENCE_S = 20


class NumpyBackend(GuardedBackend):
    """Each call is recorded, waits while the gate is shut, and may be refused by `fault`."""

    name = "numpy"

    def __init__(self, inputs: Any, outputs: Any, channels: int) -> None:
        super().__init__(
            object(), inputs, outputs, device="cpu", precision="fp32", threads=1, batch_invariant=True, details={}
        )
        self.channels = channels
        self.calls: list[list[float]] = []
        self.gate = Gate()
        self.fault: Callable[[Mapping[str, np.ndarray], np.ndarray], None] | None = None

    def _evaluate(self, runtime: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.calls.append(feeds["t"].tolist())
        self.gate.pass_through()
        x, t = feeds["x"], feeds["t"].reshape(-1, 1, 1, 1)
        label = feeds.get("labels", np.zeros(len(t), np.int64)).astype(np.float32).reshape(t.shape)
        m = np.float32(0.9) * np.sin(x + t / 70) + np.float32(0.05) * x * (label + 1)
        if self.channels > x.shape[1]:
            m = np.concatenate([m, np.tanh(x)], axis=1)
        if self.fault is not None:
            self.fault(feeds, m)
        return {"prediction": m}


class NumpyEncoder(GuardedBackend):
    """Tokens (B, 2) to labels 0 to 2."""

    name = "numpy"

    def __init__(self) -> None:
        super().__init__(
            object(),
            [b.TensorSpec("tokens", ("B", 2), "int64")],
            [b.TensorSpec("labels", ("B",), "int64")],
            device="cpu",
            precision="fp32",
            threads=1,
            batch_invariant=True,
            details={},
        )

    def _evaluate(self, runtime: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"labels": feeds["tokens"].sum(axis=1) % 3}


class Gate:
    """Open, or shut and lets through as many calls as it is told."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open, self._permits, self.waiting = True, 0, 0

    def shut(self) -> None:
        with self._changed:
            self._open, self._permits = False, 0

    def open(self) -> None:
        with self._changed:
            self._open = True
            self._changed.notify_all()

    def let(self, count: int) -> None:
        """Let so many calls through, and return when the next one waits behind them."""
        with self._changed:
            self._permits += count
            self._changed.notify_all()
        self.await_call()

    def await_call(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._permits == 0 and self.waiting, PATIENCE_S)

    def pass_through(self) -> None:
        with self._changed:
            self.waiting += 1
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._open or self._permits > 0, PATIENCE_S)
            self.waiting -= 1
            self._permits = max(0, self._permits - 1)
            self._changed.notify_all()


def numpy_sampler(
    *,
    variance: str = "small",
    labelled: bool = False,
    size_multiple: int | None = None,
    shape: tuple[int, int, int] = SHAPE,
) -> Sampler:
    """A sampler with a schedule of 100 steps; labelled: three classes, and 3 for none."""
    channels = shape[0] * (2 if variance == "learned" else 1)
    labels = (b.Condition("labels", (), "int64", tuple("abc"), 3),) if labelled else ()
    axes = shape[1:] if size_multiple is None else ("H", "W")
    inputs = (
        b.TensorSpec("x", ("B", shape[0], *axes), "float32"),
        b.TensorSpec("t", ("B",), "float32"),
        *(b.TensorSpec(label.name, ("B",), label.dtype) for label in labels),
    )
    outputs = (b.TensorSpec("prediction", ("B", channels, *axes), "float32"),)
    manifest = b.Manifest(
        model=b.ModelInfo("numpy", "1", "Apache-2.0", {"weights": "none"}),
        sample_shape=shape,
        output=b.OutputAffine((127.5,), (127.5,), "8-bit"),
        prediction="eps",
        variance=variance,
        schedule=NoiseSchedule.linear(100, 1e-3, 0.2),
        clip=(-1.0, 1.0),
        conditions=labels,
        defaults=b.Defaults("ddim", 10, "leading"),
        network=None,
        files=(),
        reference=None,
        size_multiple=size_multiple,
    )
    return Sampler(NumpyBackend(inputs, outputs, channels), manifest)


def prompted_sampler() -> Sampler:
    """A guided sampler of grey pictures that reads two words, of which there are four."""
    sampler, tokenizer = numpy_sampler(labelled=True, shape=(1, 4, 4)), Tokenizer(("big", "blue", "cat", "dog"), 2)
    manifest = replace(sampler.manifest, tokenizer=tokenizer)
    return Sampler(sampler.backend, manifest, Encoder(NumpyEncoder(), manifest.conditions, tokenizer))
