"""ONNX Runtime on a loop's buffers: the `step` graph through IO binding, on the loop's own stream.

The state goes to and fro between two buffers, so there are two bindings, and ONNX Runtime captures a graph for each of
them and each batch size. Its capture cannot be part of another, so the host enqueues one such graph a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

import onnxruntime

from ddpm_deploy.backends.base import one_line
from ddpm_deploy.backends.cuda.device import Buffers, Device, OutOfDeviceMemory
from ddpm_deploy.backends.cuda.loop import Key
from ddpm_deploy.backends.cuda.step_tensors import input_buffer, output_buffer
from ddpm_deploy.bundle import TensorSpec
from ddpm_deploy.errors import BackendError

MEMORY_MESSAGES = ("out of memory", "failed to allocate memory", "cuda failure 2:", "cublas_status_alloc_failed")
UNCAPTURED = "-1"  # the graph id under which ONNX Runtime captures nothing


class OnnxRuntimeEvaluator:
    """A session of a `step` graph. captures: whether its provider was opened with `enable_cuda_graph`."""

    name = "onnxruntime"
    fuses = True

    def __init__(self, session: Any, inputs: Sequence[TensorSpec], *, captures: bool) -> None:
        self._session: Any = session
        self._inputs = tuple(inputs)
        self._captures = captures
        self._ids = count(1)
        state = next(spec for spec in inputs if spec.name == "state")
        size = state.shape[1]
        if not isinstance(size, int):
            raise BackendError(f"onnxruntime: the step graph leaves its state free: {state.shape}; export it again")
        self.state_size: int | None = size
        names = {spec.name for spec in inputs}
        self.learned, self.weighs = "log_variance" in names, "guidance" in names

    def layout(self, key: Key) -> Mapping[str, tuple[Any, tuple[int, ...]]]:
        """Nothing beside the loop's own."""
        return {}

    def prepare(self, buffers: Buffers, key: Key) -> Callable[[int], None]:
        """Bind the state to and fro, and evaluate once outside of a capture."""
        runs = [self._bound(buffers, key, source) for source in (0, 1)]
        return lambda source: runs[source]()

    def capture(self, device: Device, enqueue: Callable[[], None]) -> Callable[[], None] | None:
        """None: ONNX Runtime replays its own graph in each evaluation."""
        return None

    def close(self) -> None:
        """Free the session."""
        self._session = None

    def _bound(self, buffers: Buffers, key: Key, source: int) -> Callable[[], None]:
        binding = self._session.io_binding()
        for spec in self._inputs:
            _bind(binding.bind_input, buffers, spec.name, input_buffer(spec.name, source))
        for name in ("next_state", "x0", "finite"):
            _bind(binding.bind_output, buffers, name, output_buffer(name, source))
        options = onnxruntime.RunOptions()
        if buffers.device.kind == "cuda":
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
            options.add_run_config_entry("gpu_graph_id", str(next(self._ids)) if self._captures else UNCAPTURED)
        return lambda: self._run(binding, options)

    def _run(self, binding: Any, options: Any) -> None:
        try:
            self._session.run_with_iobinding(binding, options)
        except Exception as error:
            message = one_line(error)
            if any(words in message.lower() for words in MEMORY_MESSAGES):
                raise OutOfDeviceMemory(f"onnxruntime: {message}") from error
            raise BackendError(f"onnxruntime: the runtime failed: {message}") from error


def _bind(bind: Callable[..., None], buffers: Buffers, name: str, buffer: str) -> None:
    tensor, device = buffers[buffer], buffers.device
    bind(name, device.kind, device.index, tensor.dtype.type, tensor.shape, tensor.address)
