"""The stand-in for `tensorrt` with a runtime that really computes: ONNX Runtime on the addresses that it is given.

An engine is the model and its profiles. What is asked for in the wrong order, or with something missing, is refused as
the real one would, or is a failed assertion where that would crash.
"""

from __future__ import annotations

import base64
import ctypes
import enum
import json
import types
from collections.abc import Mapping
from typing import Any

import fake_tensorrt as fake
import numpy as np
import onnx
import onnxruntime

NUMPY = {"float32": "FLOAT", "int64": "INT64"}
SCRATCH_BYTES = 1000  # for each sample of a profile's largest batch


def make_module(name: str = "tensorrt", version: str = "11.4.0") -> Any:
    """The module. calls: everything that engines and contexts were asked for. fails: {method: what it logs and fails}.

    builds: how many engines were built. capturable: what contexts of TensorRT-RTX say.
    """
    module = fake.make_module(version)
    module.__name__, module.calls, module.fails, module.builds = name, [], {}, 0
    module.capturable = True
    module.ExecutionContextAllocationStrategy = enum.Enum("ExecutionContextAllocationStrategy", "STATIC USER_MANAGED")
    module.TensorIOMode = enum.Enum("TensorIOMode", "INPUT OUTPUT")
    module.TensorLocation = enum.Enum("TensorLocation", "DEVICE HOST")
    module.IProfiler = type("IProfiler", (), {})
    if name == "tensorrt_rtx":
        module.DynamicShapesKernelSpecializationStrategy = enum.Enum("Strategy", "LAZY EAGER")
    _add_builder(module)
    module.Runtime = _runtime(module)
    return module


def _add_builder(module: Any) -> None:
    class Builder(module.Builder):  # type: ignore[misc]
        def create_builder_config(self) -> fake.Config:
            return fake.Config({})

        def create_network(self, flags: int) -> Any:
            return fake.Network([])

        def build_serialized_network(self, network: Any, config: fake.Config) -> bytes:
            module.builds += 1
            model = base64.b64encode(network.model).decode()
            return json.dumps({"model": model, "profiles": config.told["profiles"]}).encode()

    class OnnxParser(module.OnnxParser):  # type: ignore[misc]
        def __init__(self, network: Any, log: Any) -> None:
            self._network = network

        def parse(self, model: bytes) -> bool:
            graph = onnx.load_from_string(model).graph
            self._network.model = model
            self._network._inputs = [fake.Tensor(v.name, _dtype_of(v), _shape_of(v)) for v in graph.input]
            self._network.num_inputs = len(graph.input)
            return True

    module.Builder, module.OnnxParser = Builder, OnnxParser


def _dtype_of(value: Any) -> str:
    return NUMPY[np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)).name]


def _shape_of(value: Any) -> tuple[int, ...]:
    return tuple(-1 if axis.dim_param else axis.dim_value for axis in value.type.tensor_type.shape.dim)


def _largest(profile: Mapping[str, Any]) -> int:
    """The batch, which comes first in every input."""
    return int(next(iter(profile.values()))[-1][0])


def _runtime(module: Any) -> Any:
    class Runtime:
        def __init__(self, log: Any) -> None:
            self._log = log
            self.engine_host_code_allowed = False

        def deserialize_cuda_engine(self, data: bytes) -> Any:
            module.calls.append(("deserialize", self.engine_host_code_allowed))
            return Engine(module, self._log, json.loads(data)) if _goes(module, self._log, "deserialize") else None

    return Runtime


def _goes(module: Any, log: Any, method: str) -> bool:
    if method in module.fails:
        log.log(fake.Severity.ERROR, module.fails[method])
    return method not in module.fails


class Engine:
    def __init__(self, module: Any, log: Any, parts: Mapping[str, Any]) -> None:
        self.module, self.log, self.profiles = module, log, parts["profiles"]
        model = base64.b64decode(parts["model"])
        graph = onnx.load_from_string(model).graph
        self.values = {value.name: value for value in (*graph.input, *graph.output)}
        self.inputs = [value.name for value in graph.input]
        self.num_io_tensors = len(self.values)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def get_tensor_name(self, i: int) -> str:
        return list(self.values)[i]

    def get_tensor_mode(self, name: str) -> Any:
        modes = self.module.TensorIOMode
        return modes.INPUT if name in self.inputs else modes.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return types.SimpleNamespace(name=_dtype_of(self.values[name]))

    def get_tensor_location(self, name: str) -> Any:
        return self.module.TensorLocation.DEVICE

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return SCRATCH_BYTES * _largest(self.profiles[profile])

    def create_runtime_config(self) -> Any:
        return RuntimeConfig()

    def create_execution_context(self, how: Any = None) -> Any:
        if how is None:
            return Context(self, managed=True) if _goes(self.module, self.log, "context") else None
        if isinstance(how, RuntimeConfig):
            assert how.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
            assert how.cache is not None
            how = how.strategy
        assert how is self.module.ExecutionContextAllocationStrategy.USER_MANAGED
        self.module.calls.append(("context",))
        return Context(self) if _goes(self.module, self.log, "context") else None

    def create_engine_inspector(self) -> Any:
        return types.SimpleNamespace(get_engine_information=lambda form: json.dumps({"Layers": []}))


class RuntimeConfig:
    def __init__(self) -> None:
        self.strategy: Any = None
        self.cache: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> Any:
        return object()

    def set_runtime_cache(self, cache: Any) -> bool:
        self.cache = cache
        return True


class Context:
    """managed: it has scratch memory of its own and begins in the first profile."""

    def __init__(self, engine: Engine, *, managed: bool = False) -> None:
        self._engine, self._module = engine, engine.module
        self._profile: Any = engine.profiles[0] if managed else None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch = int(managed)
        self.profiler: Any = None
        if hasattr(self._module, "DynamicShapesKernelSpecializationStrategy"):
            self.is_stream_capturable = lambda stream: self._module.capturable

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._module.calls.append(("profile", index))
        self._profile = self._engine.profiles[index]
        return self._goes("profile")

    def set_device_memory(self, address: int, size: int) -> None:
        assert address % 256 == 0
        assert size >= SCRATCH_BYTES * _largest(self._profile)
        self._scratch = address

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert isinstance(shape, tuple)
        self._module.calls.append(("shape", name, shape))
        least, _, most = self._profile[name]
        self._shapes[name] = shape
        fits = all(low <= n <= high for low, n, high in zip(least, shape, most, strict=True))
        return fits and self._goes("shape")

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert self._shapes.keys() == set(self._engine.inputs)
        batch = self._batch
        return tuple(batch if n < 0 else n for n in _shape_of(self._engine.values[name]))

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address
        self._addresses[name] = address
        return self._goes("address")

    def execute_async_v3(self, stream: int) -> bool:
        engine = self._engine
        assert self._shapes.keys() == set(engine.inputs)
        assert self._addresses.keys() == engine.values.keys()
        assert self._scratch
        self._module.calls.append(("execute", self._batch))
        if not self._goes("execute"):
            return False
        names = [name for name in engine.values if name not in engine.inputs]
        outputs = engine.session.run(names, {name: self._at(name).copy() for name in engine.inputs})
        for name, output in zip(names, outputs, strict=True):
            np.copyto(self._at(name), output)
        if self.profiler is not None:
            for layer, ms in (("convolution", 3.0), ("everything else", 1.0)):
                self.profiler.report_layer_time(layer, ms)
        return True

    @property
    def _batch(self) -> int:
        return self._shapes[self._engine.inputs[0]][0]

    def _at(self, name: str) -> np.ndarray:
        dtype = np.dtype({"FLOAT": "f4", "INT64": "i8"}[_dtype_of(self._engine.values[name])])
        shape = self._shapes.get(name) or self.get_tensor_shape(name)
        memory = (ctypes.c_byte * (dtype.itemsize * int(np.prod(shape)))).from_address(self._addresses[name])
        return np.frombuffer(memory, dtype).reshape(shape)

    def _goes(self, method: str) -> bool:
        return _goes(self._module, self._engine.log, method)
