"""PyTorch on a loop's buffers: the network in its own precision, captured together with the loop's kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from ddpm_deploy.backends.base import one_line
from ddpm_deploy.backends.cuda.device import Buffer, Buffers, Device, OutOfDeviceMemory
from ddpm_deploy.backends.cuda.loop import CONDITION, Key
from ddpm_deploy.backends.torch import tf32
from ddpm_deploy.errors import BackendError

MEMORY_MESSAGES = ("out of memory", "alloc_failed")

Network = Callable[..., torch.Tensor]


class TorchEvaluator:
    """A module `module(x, t, **condition) -> tensor` on the loop's device; autocast gives it its precision.

    autocast: the type to compute in, None for float32. learned: whether it predicts its variance. nulls: of the
    conditions that have one, for guidance. compiles: whether torch.compile is to make it faster first, anew for each
    shape of a batch.
    """

    name = "torch"
    fuses = False
    state_size: int | None = None
    weighs = False

    def __init__(
        self,
        module: nn.Module,
        *,
        autocast: torch.dtype | None,
        allow_tf32: bool = False,
        learned: bool,
        compiles: bool = False,
        nulls: Mapping[str, float] | None = None,
    ) -> None:
        self._module: nn.Module | None = module
        self._nulls = nulls or {}
        self._autocast, self._allow_tf32, self.learned = autocast, allow_tf32, learned
        self._compiles = compiles
        self._compiled: dict[tuple[int, ...], Network] = {}

    def layout(self, key: Key) -> Mapping[str, tuple[Any, tuple[int, ...]]]:
        """The network's output."""
        channels = key.shape[0] * (2 if self.learned else 1)
        return {"prediction": (np.float32, (key.batch, channels, *key.shape[1:]))}

    def prepare(self, buffers: Buffers, key: Key) -> Callable[[int], None]:
        """The network on views of the buffers: image 0 of the state is the first B samples of it."""
        batch = 2 * key.batch if key.guided else key.batch
        device, module = buffers.device, self._network((batch, *key.shape))
        if device.kind == "cuda":  # its weights are written on another stream
            torch.cuda.synchronize(device.index)
        x = tensor_at(buffers["state"], device)[0]
        t, prediction = (tensor_at(buffers[name], device) for name in ("row_t", "prediction"))
        condition = {name: tensor_at(buffers[CONDITION + name], device) for name, _, _ in key.condition}
        weight = tensor_at(buffers["row_guidance"], device) if key.guided else None
        channels = key.shape[0]

        def evaluate(source: int) -> None:
            enabled = self._autocast is not None
            with (
                _stream(device),
                _errors(),
                tf32(self._allow_tf32) if device.kind == "cuda" else nullcontext(),
                torch.no_grad(),
                torch.autocast(x.device.type, dtype=self._autocast, enabled=enabled, cache_enabled=False),
            ):
                if weight is None:
                    prediction.copy_(module(x, t, **condition))
                else:
                    both = {name: self._with_null(name, value) for name, value in condition.items()}
                    toward, away = module(torch.cat([x, x]), torch.cat([t, t]), **both).float().chunk(2)
                    prediction.copy_(_blend(toward, away, weight, channels))

        return evaluate

    def _with_null(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """The condition of both halves in one batch."""
        null = self._nulls.get(name)
        return torch.cat([value, value if null is None else torch.full_like(value, null)])

    def capture(self, device: Device, enqueue: Callable[[], None]) -> Callable[[], None] | None:
        """By torch itself, whose allocator has to know; on a host nothing is captured."""
        if device.kind != "cuda":
            return None
        graph, failures, stream = torch.cuda.CUDAGraph(), list[BaseException](), _external(device)
        captured: Any = torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local")
        with (
            _errors(failures),
            _stream(device),
            captured,
        ):  # torch does not leave the stream of a failed capture
            try:
                enqueue()
            except BaseException as error:
                failures.append(error)
                raise

        def replay() -> None:
            with _errors(), _stream(device):
                graph.replay()

        return replay

    def release(self) -> None:
        """Give back what torch's allocator keeps for later: the loop's buffers come from the driver."""
        torch.cuda.empty_cache()  # does nothing where CUDA is not in use

    def close(self) -> None:
        """Let go of the network."""
        self._module = None
        self._compiled.clear()

    def _network(self, shape: tuple[int, ...]) -> Network:
        assert self._module is not None
        if not self._compiles:
            return self._module
        if shape not in self._compiled:
            self._compiled[shape] = compiled(self._module)
        return self._compiled[shape]


def compiled(module: nn.Module, backend: str | Callable[..., Any] = "inductor") -> Network:
    """Compiled for one shape of its inputs, for speed alone, without graphs of its own: the loop captures it.

    PyTorch counts what it has compiled by the code that it came from, and past eight it goes on uncompiled. So each
    has code of its own, and fails rather than being left uncompiled.
    """

    def evaluate(*inputs: torch.Tensor, **condition: torch.Tensor) -> torch.Tensor:
        return module(*inputs, **condition)

    evaluate.__code__ = evaluate.__code__.replace()
    mode = "max-autotune-no-cudagraphs" if backend == "inductor" else None
    return torch.compile(evaluate, fullgraph=True, dynamic=False, backend=backend, mode=mode)


def _blend(toward: torch.Tensor, away: torch.Tensor, weight: torch.Tensor, channels: int) -> torch.Tensor:
    """As `guidance.blend`, on the device."""
    weight = weight.reshape(-1, *[1] * (toward.ndim - 1))
    halves = []
    for w, part in ((weight, slice(0, channels)), (weight.clamp(0, 1), slice(channels, None))):
        halves.append(w * toward[:, part] + (1 - w) * away[:, part])
    return torch.cat(halves, dim=1)


def tensor_at(buffer: Buffer, device: Device) -> torch.Tensor:
    """A view of a buffer, which keeps no memory alive."""
    if device.kind == "cuda":
        return torch.as_tensor(_Exposed(buffer), device=torch.device("cuda", device.index))
    memory = (ctypes.c_byte * buffer.size_bytes).from_address(buffer.address)
    return torch.from_numpy(np.frombuffer(memoryview(memory), buffer.dtype).reshape(buffer.shape))


class _Exposed:
    """A buffer as other libraries read it: the CUDA array interface, version 3."""

    def __init__(self, buffer: Buffer) -> None:
        self.__cuda_array_interface__ = {
            "shape": buffer.shape,
            "typestr": buffer.dtype.str,
            "data": (buffer.address, False),
            "strides": None,
            "version": 3,
        }


@contextmanager
def _stream(device: Device) -> Iterator[None]:
    """Make the loop's stream torch's own."""
    if device.kind != "cuda":
        yield
        return
    with torch.cuda.stream(_external(device)):
        yield


def _external(device: Device) -> Any:
    stream: Any = torch.cuda.ExternalStream  # untyped in torch
    return stream(device.stream, device=device.index)


@contextmanager
def _errors(failures: Sequence[BaseException] = ()) -> Iterator[None]:
    """Torch's errors as ours. failures: what has gone wrong before, which counts more than what followed from it."""
    try:
        yield
    except RuntimeError as error:
        if failures and failures[0] is not error:
            raise failures[0] from error
        if any(words in str(error).lower() for words in MEMORY_MESSAGES):
            raise OutOfDeviceMemory(f"torch: {one_line(error)}") from error
        raise BackendError(f"torch: the runtime failed: {one_line(error)}") from error
