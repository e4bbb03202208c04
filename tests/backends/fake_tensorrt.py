"""A stand-in for the `tensorrt` package, for what differs between its versions and for machines without a GPU.

It parses nothing: its network has the layers that a test gives it. What the builder was told is kept in `told`.
"""

from __future__ import annotations

import enum
import json
import types
from typing import Any

from ddpm_deploy.bundle import Bundle


class Severity(enum.Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    Severity = Severity


class Tensor:
    def __init__(self, name: str, dtype: str, shape: tuple[int, ...] = (1,)) -> None:
        self.name, self.dtype, self.shape = name, types.SimpleNamespace(name=dtype), shape


class Layer:
    def __init__(self, kind: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        self.type = types.SimpleNamespace(name=kind)
        self._inputs, self._outputs = inputs, outputs
        self.num_inputs, self.num_outputs = len(inputs), len(outputs)

    def get_input(self, i: int) -> Tensor:
        return self._inputs[i]

    def get_output(self, i: int) -> Tensor:
        return self._outputs[i]


X = Tensor("x", "FLOAT", (-1, 1, 8, 8))
T = Tensor("t", "FLOAT", (-1,))
HALF_LAYERS = [Layer("CONVOLUTION", [Tensor("a", "HALF")], [Tensor("b", "HALF")])]
FLOAT_LAYERS = [Layer("CONVOLUTION", [X], [Tensor("b", "FLOAT")])]


def inputs_of(bundle: Bundle) -> list[Tensor]:
    """The inputs of a bundle's denoiser, as a network has them that was parsed from it."""
    names = {"float32": "FLOAT", "int64": "INT64"}
    return [
        Tensor(spec.name, names[spec.dtype], tuple(-1 if isinstance(axis, str) else axis for axis in spec.shape))
        for spec in bundle.file("denoiser", "fp32").inputs
    ]


class Network:
    inputs = (X, T)

    def __init__(self, layers: list[Layer]) -> None:
        self._layers, self._inputs = layers, self.inputs
        self.num_layers, self.num_inputs = len(layers), len(self.inputs)

    def get_layer(self, i: int) -> Layer:
        return self._layers[i]

    def get_input(self, i: int) -> Tensor:
        return self._inputs[i]


class TimingCache:
    def __init__(self, blob: bytes) -> None:
        self.blob = blob

    def serialize(self) -> bytes:
        return self.blob + b"+timed"


class Config:
    def __init__(self, told: dict[str, Any]) -> None:
        self.__dict__["told"] = told

    def __setattr__(self, name: str, value: Any) -> None:
        self.told[name] = value

    def add_optimization_profile(self, profile: Any) -> int:
        self.told.setdefault("profiles", []).append(profile.shapes)
        return len(self.told["profiles"]) - 1

    def set_flag(self, flag: enum.Enum) -> None:
        self.told.setdefault("flags", []).append(flag.name)

    def clear_flag(self, flag: enum.Enum) -> None:
        self.told.setdefault("cleared", []).append(flag.name)

    def set_memory_pool_limit(self, pool: enum.Enum, size: int) -> None:
        self.told[pool.name] = size

    def create_timing_cache(self, blob: bytes) -> TimingCache:
        self.told["timing"] = blob
        return TimingCache(blob)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        self.told["ignore_mismatch"] = ignore_mismatch
        return True


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.shapes[name] = shapes


def make_module(
    version: str = "11.4.0",
    *,
    gpu: bool = True,
    layers: list[Layer] | None = None,
    inspector: dict[str, Any] | None = None,
    strong: bool = True,
    fails: str | None = None,
) -> Any:
    """The module. strong: whether it has the flag for strong typing. fails: what a build that returns nothing logs."""
    module: Any = types.ModuleType("tensorrt")
    module.__version__ = version
    module.told = told = {}

    class Builder:
        def __init__(self, log: Any) -> None:
            self.log = log
            if not gpu:
                log.log(Severity.ERROR, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")

        def create_network(self, flags: int) -> Network:
            told["network_flags"] = flags
            return Network(FLOAT_LAYERS if layers is None else layers)

        def create_builder_config(self) -> Config:
            return Config(told)

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
            if fails is not None:
                self.log.log(Severity.ERROR, fails)
                return None
            return b"engine of " + version.encode()

    class OnnxParser:
        num_errors = 0

        def __init__(self, network: Network, log: Any) -> None:
            pass

        def parse(self, model: bytes) -> bool:
            return True

    class Runtime:
        def __init__(self, log: Any) -> None:
            pass

        def deserialize_cuda_engine(self, engine: bytes) -> Any:
            report = types.SimpleNamespace(get_engine_information=lambda form: json.dumps(inspector))
            return types.SimpleNamespace(create_engine_inspector=lambda: report)

    module.ILogger, module.Builder, module.OnnxParser, module.Runtime = ILogger, Builder, OnnxParser, Runtime
    weak = "FP16 BF16" if version.startswith("10.") else ""
    flags = {"STRONGLY_TYPED": 1} if strong else {"EXPLICIT_BATCH": 0}
    module.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", flags)
    module.BuilderFlag = enum.Enum("BuilderFlag", f"TF32 VERSION_COMPATIBLE STRIP_PLAN REFIT REFIT_IDENTICAL {weak}")
    module.ProfilingVerbosity = enum.Enum("ProfilingVerbosity", "DETAILED")
    module.MemoryPoolType = enum.Enum("MemoryPoolType", "WORKSPACE")
    module.LayerInformationFormat = enum.Enum("LayerInformationFormat", "JSON")
    module.HardwareCompatibilityLevel = enum.Enum("HardwareCompatibilityLevel", "NONE AMPERE_PLUS")
    return module
