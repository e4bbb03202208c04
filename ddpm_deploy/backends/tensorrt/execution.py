"""A deserialised engine on a device, and the contexts that run it there on given addresses.

A context that a graph was captured from must not change any more. So each is bound to its tensors once and then only
run, and it is cheap to have several: their scratch memory is given to them, and those of one stream share a piece.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ddpm_deploy.backends.cuda.device import Buffer, Device, OutOfDeviceMemory
from ddpm_deploy.backends.tensorrt.adapter import Adapter, said
from ddpm_deploy.backends.tensorrt.network import NUMPY
from ddpm_deploy.backends.tensorrt.profiles import BATCH, Shape, make_profiles
from ddpm_deploy.backends.tensorrt.settings import BuildSettings
from ddpm_deploy.bundle import TensorSpec
from ddpm_deploy.errors import BackendError, BackendUnavailable

MEMORY_MESSAGES = ("out of memory", "outofmemory", "out_of_memory", "failed to allocate", "memoryallocation")
REBUILD = "build the engine again with python -m ddpm_deploy.build --force"
Tensors = Mapping[str, Buffer]


class Engine:
    """An engine, and what a caller has to know to run it; close it before its device.

    inputs, outputs: as the manifest declares them. device: where its weights are, and whose stream it runs on.
    """

    def __init__(
        self,
        adapter: Adapter,
        engine: bytes,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        settings: BuildSettings,
        device: Device,
    ) -> None:
        """engine: already authenticated. settings: that it was built with."""
        self.name, self.title, self.device = adapter.name, adapter.title, device
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self._profiles = make_profiles(inputs, settings)
        self._api = adapter.api
        with device.active():
            self._log, runtime = adapter.open_runtime()
            if settings.version_compatible:
                runtime.engine_host_code_allowed = True  # such engines carry a runtime of their own
            self._engine: Any = self.checked(runtime.deserialize_cuda_engine(engine), "cannot load the engine")
            if not hasattr(self._engine, "get_device_memory_size_for_profile_v2"):
                raise BackendUnavailable(f"{self.title}: is too old to run engines, expected 10.1 or newer; upgrade it")
            self._check_tensors()
            self._jit = _compile_at_once(self._api, self._engine)

    @property
    def largest_batch(self) -> int | None:
        """None where the graph has no free batch."""
        sizes = [self._profiles[-1][s.name][-1][s.shape.index(BATCH)] for s in self.inputs if BATCH in s.shape]
        return max(sizes, default=None)

    def profile_for(self, shapes: Mapping[str, Shape]) -> int:
        """The profile that takes inputs of these shapes; others may be among them. BackendError where there is none."""
        for index, profile in enumerate(self._profiles):
            if all(_within(shapes[name], least, most) for name, (least, _, most) in profile.items()):
                return index
        got = ", ".join(f"{spec.name} {list(shapes[spec.name])}" for spec in self.inputs)
        most = ", ".join(f"{name} {list(limits[-1])}" for name, limits in self._profiles[-1].items())
        raise BackendError(f"{self.title}: inputs: got {got}, expected at most {most}; build for these sizes")

    def scratch_bytes(self, profile: int) -> int:
        """Memory that a context of a profile needs while it runs."""
        return int(self._engine.get_device_memory_size_for_profile_v2(profile))

    def create_context(self) -> Any:
        """A context of the runtime's own, without scratch memory."""
        strategy = self._api.ExecutionContextAllocationStrategy.USER_MANAGED
        made = self._engine.create_execution_context(self._jit[0] if self._jit else strategy)
        return self.checked(made, "cannot make an execution context")

    def make_profiler(self, times: LayerTimes) -> Any:
        """What a context reports to, and it to `times`."""
        return _make_profiler(self._api, times)

    def checked(self, done: Any, what: str, remedy: str = REBUILD) -> Any:
        """What a call returned; an error with what the runtime said of it where that is None or False.

        OutOfDeviceMemory where it said so, else BackendError.
        """
        if done is None or done is False:
            reason = said(self._log)
            if any(words in reason.lower() for words in MEMORY_MESSAGES):
                raise OutOfDeviceMemory(f"{self.title}: {what}: {reason}")
            raise BackendError(f"{self.title}: {what}: {reason}; {remedy}")
        return done

    def close(self) -> None:
        """Free it; contexts keep it alive until they are gone too."""
        with self.device.active():
            self._engine, self._jit = None, None

    def _check_tensors(self) -> None:
        api, engine = self._api, self._engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        for kind, mode, declared in (
            ("inputs", api.TensorIOMode.INPUT, self.inputs),
            ("outputs", api.TensorIOMode.OUTPUT, self.outputs),
        ):
            found = {name: _dtype(engine, name) for name in names if engine.get_tensor_mode(name) == mode}
            expected = {spec.name: spec.dtype for spec in declared}
            if found != expected:
                raise BackendError(
                    f"{self.title}: {kind} of the engine: got {_listed(found)}, expected {_listed(expected)}; {REBUILD}"
                )
        if any(engine.get_tensor_location(name) != api.TensorLocation.DEVICE for name in names):
            raise BackendError(f"{self.title}: the engine wants tensors in host memory; use backend 'onnxruntime'")


class Execution:
    """A context in one profile, which runs on the device's stream; the calling thread must be inside of `active`."""

    def __init__(self, engine: Engine, profile: int) -> None:
        self._engine, self._stream = engine, engine.device.stream
        self._context = engine.create_context()
        selected = self._context.set_optimization_profile_async(profile, self._stream)
        engine.checked(selected, f"cannot select profile {profile}")
        self._bound: tuple[dict[str, Buffer], Buffer] | None = None
        self._times: LayerTimes | None = None

    @property
    def is_capturable(self) -> bool:
        """Whether a graph can be captured of it; TensorRT always can, TensorRT-RTX says so once tensors are bound."""
        asked = getattr(self._context, "is_stream_capturable", None)
        return self._times is None and (asked is None or bool(asked(self._stream)))

    def bind(self, tensors: Tensors, scratch: Buffer) -> None:
        """Set the shape and address of every tensor, and the scratch memory."""
        if self._bound == (tensors, scratch):
            return
        self._bound = None
        context, checked = self._context, self._engine.checked
        for spec in self._engine.inputs:
            shape = tensors[spec.name].shape
            checked(context.set_input_shape(spec.name, shape), f"input {spec.name!r} cannot have shape {list(shape)}")
        for spec in self._engine.outputs:
            self._check_output(spec.name, tensors[spec.name].shape)
        for spec in (*self._engine.inputs, *self._engine.outputs):
            address = tensors[spec.name].address
            checked(context.set_tensor_address(spec.name, address), f"cannot place tensor {spec.name!r}")
        context.set_device_memory(scratch.address, scratch.size_bytes)
        self._bound = dict(tensors), scratch

    def enqueue(self) -> None:
        """Run once, on what is in the tensors when the stream gets there."""
        assert self._bound is not None
        self._engine.checked(
            self._context.execute_async_v3(self._stream), "the execution failed", "try backend 'onnxruntime'"
        )
        if self._times is not None:
            self._times.calls += 1

    def time_layers(self) -> LayerTimes:
        """From now on let `enqueue` wait for the device and report each layer; such a context is not to be captured."""
        self._times = LayerTimes()
        self._context.profiler = self._engine.make_profiler(self._times)
        return self._times

    def _check_output(self, name: str, expected: Shape) -> None:
        """A tensor that is larger than its place would overwrite its neighbours."""
        got = tuple(self._context.get_tensor_shape(name))
        if got != expected:
            raise BackendError(
                f"{self._engine.title}: output {name!r}: got shape {list(got)}, expected {list(expected)}; {REBUILD}"
            )


class LayerTimes:
    """How long the layers of a context took. calls: how many runs were timed."""

    def __init__(self) -> None:
        self.calls = 0
        self._ms: defaultdict[str, float] = defaultdict(float)

    def add(self, layer: str, ms: float) -> None:
        """To be called by the runtime once for each layer of each run."""
        self._ms[layer] += ms

    def average_ms(self) -> dict[str, float]:
        """{layer: milliseconds of one run}, in the order in which they run."""
        return {layer: ms / max(1, self.calls) for layer, ms in self._ms.items()}


def _make_profiler(api: Any, times: LayerTimes) -> Any:
    class Profiler(api.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times.add(layer_name, ms)

    return Profiler()


def _compile_at_once(api: Any, engine: Any) -> tuple[Any, Any] | None:
    """(configuration of contexts, cache of compiled kernels) for TensorRT-RTX, which compiles as it runs.

    It would swap its kernels for better ones in the background, and a captured graph would keep the first ones.
    """
    if not hasattr(api, "DynamicShapesKernelSpecializationStrategy"):
        return None
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(api.ExecutionContextAllocationStrategy.USER_MANAGED)
    config.dynamic_shapes_kernel_specialization_strategy = api.DynamicShapesKernelSpecializationStrategy.EAGER
    kernels = config.create_runtime_cache()
    config.set_runtime_cache(kernels)
    return config, kernels


def _within(shape: Shape, least: Shape, most: Shape) -> bool:
    return len(shape) == len(most) and all(low <= n <= high for low, n, high in zip(least, shape, most, strict=True))


def _dtype(engine: Any, name: str) -> str:
    found = str(engine.get_tensor_dtype(name).name)
    return NUMPY.get(found, found)


def _listed(tensors: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {dtype}" for name, dtype in tensors.items()) or "none"
