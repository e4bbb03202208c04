"""TensorRT on a loop's buffers: an engine of the `step` graph, captured together with the loop's kernels.

The state goes to and fro between two buffers, so there are two contexts, each bound to its own direction for good; they
take turns on one stream and share their scratch memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ddpm_deploy.backends.cuda.device import Buffer, Buffers, Device
from ddpm_deploy.backends.cuda.loop import Key
from ddpm_deploy.backends.cuda.step_tensors import input_buffer, output_buffer
from ddpm_deploy.backends.tensorrt.execution import Engine, Execution
from ddpm_deploy.errors import BackendError

SCRATCH = "scratch"

logger = logging.getLogger(__name__)


class TensorRtEvaluator:
    """An engine of a `step` graph, on the device of the loop; closing it closes the engine."""

    fuses = True

    def __init__(self, engine: Engine) -> None:
        self.name = engine.name
        self._engine = engine
        self._specs = {spec.name: spec for spec in engine.inputs}
        size = self._specs["state"].shape[1]
        if not isinstance(size, int):
            shape = self._specs["state"].shape
            raise BackendError(f"{engine.title}: the step graph leaves its state free: {shape}; export it again")
        self.state_size: int | None = size
        self.learned, self.weighs = "log_variance" in self._specs, "guidance" in self._specs
        self._is_capturable = True

    def layout(self, key: Key) -> Mapping[str, tuple[Any, tuple[int, ...]]]:
        """The scratch memory of a context."""
        return {SCRATCH: (np.uint8, (self._engine.scratch_bytes(self._profile(key)),))}

    def prepare(self, buffers: Buffers, key: Key) -> Callable[[int], None]:
        """Make a context for each direction of the state."""
        with buffers.device.active():
            executions = [self._execution(buffers, key, source) for source in (0, 1)]
            if self._is_capturable and not all(execution.is_capturable for execution in executions):
                logger.warning("%s: the engine cannot be captured; every row is enqueued anew", self._engine.title)
                self._is_capturable = False
        return lambda source: executions[source].enqueue()

    def capture(self, device: Device, enqueue: Callable[[], None]) -> Callable[[], None] | None:
        """One graph of all that is enqueued; None where TensorRT-RTX says that its engine cannot be captured."""
        return device.capture(enqueue) if self._is_capturable else None

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()

    def _execution(self, buffers: Buffers, key: Key, source: int) -> Execution:
        execution = Execution(self._engine, self._profile(key))
        tensors: dict[str, Buffer] = {name: buffers[input_buffer(name, source)] for name in self._specs}
        tensors |= {spec.name: buffers[output_buffer(spec.name, source)] for spec in self._engine.outputs}
        execution.bind(tensors, buffers[SCRATCH])
        return execution

    def _profile(self, key: Key) -> int:
        image = zip(self._specs["noise"].shape, (key.batch, *key.shape), strict=True)
        sizes = {axis: size for axis, size in image if isinstance(axis, str)}
        shapes = {
            name: tuple(sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape)
            for name, spec in self._specs.items()
        }
        return self._engine.profile_for(shapes)
