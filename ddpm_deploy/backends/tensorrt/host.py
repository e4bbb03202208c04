"""Running an engine on host arrays: copied in, executed, copied out, in memory that grows with the largest batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock

import numpy as np

from ddpm_deploy.backends.cuda.device import Array, Buffer, Buffers
from ddpm_deploy.backends.tensorrt.execution import Engine, Execution
from ddpm_deploy.backends.tensorrt.profiles import BATCH, Shape
from ddpm_deploy.bundle import TensorSpec
from ddpm_deploy.errors import BackendError

SCRATCH = ""  # a name that no tensor has

Feeds = Mapping[str, Array]


class HostRunner:
    """Owns an engine and its device; threads take turns. A batch that is too large for the engine is cut in pieces."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._device = engine, engine.device
        self._lock = Lock()
        self._sizes: dict[str, int] = {}
        self._buffers: Buffers | None = None
        self._executions: dict[int, Execution] = {}
        self._is_open = True

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Evaluate feeds that fit the inputs; the arrays returned share no memory with anything."""
        with self._turn():
            return self._joined([self._run(part) for part in self._pieces(feeds)])

    def layer_ms(self, feeds: Feeds, calls: int) -> dict[str, float]:
        """{layer: milliseconds of one run}, over `calls` runs after one that is not counted."""
        with self._turn():
            part = next(self._pieces(feeds))
            profile, tensors = self._placed(part)
            execution = Execution(self._engine, profile)
            execution.bind(tensors, self._scratch())
            self._fill(part, tensors)
            execution.enqueue()
            self._device.synchronize()
            times = execution.time_layers()
            for _ in range(calls):
                execution.enqueue()
            self._device.synchronize()
            return times.average_ms()

    def close(self) -> None:
        """Free everything once the call that is running has returned."""
        with self._lock:
            if not self._is_open:
                return
            self._is_open = False
            self._device.synchronize()
            self._executions.clear()
            self._free()
            self._engine.close()
            self._device.close()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self._lock:
            if not self._is_open:
                raise BackendError(f"{self._engine.name}: the backend is closed; open it again")
            with self._device.active():
                yield

    def _run(self, feeds: Feeds) -> dict[str, Array]:
        profile, tensors = self._placed(feeds)
        if profile not in self._executions:
            self._executions[profile] = Execution(self._engine, profile)
        execution = self._executions[profile]
        execution.bind(tensors, self._scratch())
        self._fill(feeds, tensors)
        execution.enqueue()
        return {spec.name: self._read(tensors[spec.name]) for spec in self._engine.outputs}

    def _placed(self, feeds: Feeds) -> tuple[int, dict[str, Buffer]]:
        """(the profile, where each tensor goes)."""
        specs = (*self._engine.inputs, *self._engine.outputs)
        sizes = _axis_sizes(self._engine.inputs, feeds)
        shapes = {spec.name: _shape(spec, sizes) for spec in specs}
        profile = self._engine.profile_for(shapes)
        dtypes = {spec.name: np.dtype(spec.dtype) for spec in specs}
        needed = {name: Buffer(0, dtypes[name], shape).size_bytes for name, shape in shapes.items()}
        buffers = self._grown(needed | {SCRATCH: self._engine.scratch_bytes(profile)})
        return profile, {name: Buffer(buffers[name].address, dtypes[name], shapes[name]) for name in shapes}

    def _grown(self, needed: Mapping[str, int]) -> Buffers:
        """The memory, which is made anew where something does not fit into it."""
        if self._buffers is not None and all(self._sizes[name] >= size for name, size in needed.items()):
            return self._buffers
        sizes = {name: max(size, self._sizes.get(name, 0)) for name, size in needed.items()}
        self._device.synchronize()
        self._free()
        self._buffers = Buffers(self._device, {name: (np.uint8, (size,)) for name, size in sizes.items()})
        self._sizes = sizes
        return self._buffers

    def _free(self) -> None:
        if self._buffers is not None:
            self._buffers.free()
        self._buffers, self._sizes = None, {}

    def _scratch(self) -> Buffer:
        assert self._buffers is not None
        return self._buffers[SCRATCH]

    def _fill(self, feeds: Feeds, tensors: Mapping[str, Buffer]) -> None:
        for name, array in feeds.items():
            self._device.write(tensors[name].address, np.ascontiguousarray(array))

    def _read(self, tensor: Buffer) -> Array:
        array = np.empty(tensor.shape, tensor.dtype)
        self._device.read(tensor.address, array)
        return array

    def _pieces(self, feeds: Feeds) -> Iterator[Feeds]:
        most, axes = self._engine.largest_batch, _batch_axes(self._engine.inputs)
        if most is None:
            yield feeds
            return
        batch = _axis_sizes(self._engine.inputs, feeds)[BATCH]
        for begin in range(0, batch, most):
            yield {name: _part(array, axes.get(name), begin, begin + most) for name, array in feeds.items()}

    def _joined(self, parts: list[dict[str, Array]]) -> dict[str, Array]:
        if len(parts) == 1:
            return parts[0]
        axes = _batch_axes(self._engine.outputs)
        return {name: np.concatenate([part[name] for part in parts], axes[name]) for name in parts[0]}


def _axis_sizes(specs: tuple[TensorSpec, ...], feeds: Feeds) -> dict[str, int]:
    pairs = [pair for spec in specs for pair in zip(spec.shape, feeds[spec.name].shape, strict=True)]
    return {axis: size for axis, size in pairs if isinstance(axis, str)}


def _shape(spec: TensorSpec, sizes: Mapping[str, int]) -> Shape:
    return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape)


def _batch_axes(specs: tuple[TensorSpec, ...]) -> dict[str, int]:
    return {spec.name: spec.shape.index(BATCH) for spec in specs if BATCH in spec.shape}


def _part(array: Array, axis: int | None, begin: int, end: int) -> Array:
    return array if axis is None else array[(slice(None),) * axis + (slice(begin, end),)]
