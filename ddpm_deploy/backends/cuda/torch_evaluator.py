"""PyTorch on a loop's buffers: the network in its own precision, captured together with the loop's kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from ddpm_deploy.backends.cuda.device import Buffer, Buffers, Device, OutOfDeviceMemory
from ddpm_deploy.backends.cuda.loop import CONDITION, Key
from ddpm_deploy.backends.torch import tf32


class TorchEvaluator:
    """A module `module(x, t, **condition) -> tensor` on the loop's device; autocast gives it its precision.

    autocast: the type to compute in, None for float32. learned: whether it predicts its variance. nulls: of the
    conditions that have one, for guidance.
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
        nulls: Mapping[str, float] | None = None,
    ) -> None:
        self._module: nn.Module | None = module
        self._nulls = nulls or {}
        self._autocast, self._allow_tf32, self.learned = autocast, allow_tf32, learned

    def layout(self, key: Key) -> Mapping[str, tuple[Any, tuple[int, ...]]]:
        """The network's output."""
        channels = key.shape[0] * (2 if self.learned else 1)
        return {"prediction": (np.float32, (key.batch, channels, *key.shape[1:]))}

    def prepare(self, buffers: Buffers, key: Key) -> Callable[[int], None]:
        """The network on views of the buffers: image 0 of the state is the first B samples of it."""
        device, module = buffers.device, self._module
        assert module is not None
        x = tensor_at(buffers["state"], device)[0]
        t, prediction = (tensor_at(buffers[name], device) for name in ("row_t", "prediction"))
        condition = {name: tensor_at(buffers[CONDITION + name], device) for name, _, _ in key.condition}
        weight = tensor_at(buffers["row_guidance"], device) if key.guided else None
        channels = key.shape[0]

        def evaluate(source: int) -> None:
            enabled = self._autocast is not None
            with (
                _stream(device),
                _memory_errors(),
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
        graph = torch.cuda.CUDAGraph()
        with _memory_errors(), torch.cuda.graph(graph, stream=_external(device), capture_error_mode="thread_local"):
            enqueue()

        def replay() -> None:
            with _stream(device):
                graph.replay()

        return replay

    def close(self) -> None:
        """Let go of the network."""
        self._module = None


def _blend(toward: torch.Tensor, away: torch.Tensor, weight: torch.Tensor, channels: int) -> torch.Tensor:
    """As `guidance.blend`, on the device."""
    weight = weight.reshape(-1, *[1] * (toward.ndim - 1))
    halves = []
    for w, part in ((weight, slice(0, channels)), (weight.clamp(0, 1), slice(channels, None))):
        halves.append(w * toward[:, part] + (1 - w) * away[:, part])
    return torch.cat(halves, dim=1)


def compiled(module: nn.Module) -> nn.Module:
    """Compiled for speed alone, without graphs of its own: the loop captures it."""
    return torch.compile(module, mode="max-autotune-no-cudagraphs", dynamic=False)  # type: ignore[return-value]


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
def _memory_errors() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfDeviceMemory(f"torch: {error}") from error
