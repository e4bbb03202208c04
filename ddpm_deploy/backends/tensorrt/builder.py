"""From an ONNX graph to an engine, with its layers' types verified on the way."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ddpm_deploy.backends.base import one_line
from ddpm_deploy.backends.cuda.gpus import find_gpu
from ddpm_deploy.backends.tensorrt.adapter import Adapter, Session
from ddpm_deploy.backends.tensorrt.network import (
    LayerTypes,
    check_engine_precision,
    check_inputs,
    layer_types,
    parse,
    require_precision,
)
from ddpm_deploy.backends.tensorrt.profiles import Profile, make_profiles
from ddpm_deploy.backends.tensorrt.settings import TENSORRT, TENSORRT_RTX, BuildSettings
from ddpm_deploy.backends.tensorrt.timing import TimingFile
from ddpm_deploy.bundle import TensorSpec
from ddpm_deploy.errors import BackendError, BackendUnavailable


@dataclass(frozen=True)
class BuiltEngine:
    """A serialised engine and what is known of it.

    layers: see `network.layer_types`. inspected: whether the engine itself was looked into, which takes a GPU.
    """

    engine: bytes
    profiles: tuple[Profile, ...]
    layers: LayerTypes
    inspected: bool
    seconds: float


def build_engine(
    adapter: Adapter,
    model: bytes,
    inputs: Sequence[TensorSpec],
    settings: BuildSettings,
    *,
    precision: str,
    timing: TimingFile | None = None,
) -> BuiltEngine:
    """Build an engine of an ONNX graph; its precision is what the graph says, and is verified.

    inputs: as the manifest declares them. timing: where earlier timings are, and new ones go.
    Raises BackendError where the runtime refuses the graph or would compute in another precision than `precision`,
    BackendUnavailable where it cannot build here, ValueError for settings that it does not have.
    """
    settings.require_known(adapter.name)
    profiles = make_profiles(inputs, settings)
    start = time.perf_counter()
    _require_gpu_for_refit(adapter, settings)
    session = adapter.open()
    network, parser = parse(session, model)
    check_inputs(adapter.title, network, inputs)
    layers = layer_types(network)
    require_precision(adapter.title, precision, layers)
    config = _configure(session, profiles, settings)
    timings = _start_timings(session, config, timing)
    engine = _serialise(session, network, config)
    del parser
    if timing is not None and timings is not None:
        timing.write(bytes(timings.serialize()))
    inspected = _inspect(session, engine, precision, settings)
    return BuiltEngine(engine, profiles, layers, inspected, time.perf_counter() - start)


def _require_gpu_for_refit(adapter: Adapter, settings: BuildSettings) -> None:
    """TensorRT-RTX builds everything else without a GPU, and says of this only that an internal check failed."""
    if adapter.name == TENSORRT_RTX and (settings.refit or settings.strip_weights) and find_gpu() is None:
        raise BackendUnavailable(
            f"{adapter.title}: refit and strip_weights need an NVIDIA GPU with its driver, also here; leave them out"
        )


def _configure(session: Session, profiles: Sequence[Profile], settings: BuildSettings) -> Any:
    api, config = session.adapter.api, session.builder.create_builder_config()
    for shapes in profiles:
        profile = session.builder.create_optimization_profile()
        for name, (least, tuned, most) in shapes.items():
            profile.set_shape(name, least, tuned, most)
        if config.add_optimization_profile(profile) < 0:
            raise session.fail(f"refuses the profile {shapes}", "give other sizes")
    config.clear_flag(api.BuilderFlag.TF32)  # fp32 means 24 bits
    config.profiling_verbosity = api.ProfilingVerbosity.DETAILED  # else the inspector shows no types
    for name in _flags(settings):
        config.set_flag(getattr(api.BuilderFlag, name))
    if settings.optimization_level is not None:
        config.builder_optimization_level = settings.optimization_level
    if settings.workspace_bytes is not None:
        config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    if settings.hardware_compatibility is not None:
        config.hardware_compatibility_level = _compatibility(session, settings.hardware_compatibility)
    _set_capabilities(api, config, settings.compute_capabilities)
    return config


def _flags(settings: BuildSettings) -> list[str]:
    """Names of the builder flags that the settings ask for."""
    flags = ["VERSION_COMPATIBLE"] if settings.version_compatible else []
    if settings.strip_weights:
        return [*flags, "STRIP_PLAN", "REFIT_IDENTICAL"]
    return [*flags, "REFIT"] if settings.refit else flags


def _compatibility(session: Session, name: str) -> Any:
    level = getattr(session.adapter.api.HardwareCompatibilityLevel, name.upper(), None)
    if level is None:
        raise BackendError(f"{session.adapter.title}: has no hardware_compatibility {name}; leave it out, or upgrade")
    return level


def _set_capabilities(api: Any, config: Any, capabilities: Sequence[str]) -> None:
    if not capabilities:
        return
    config.num_compute_capabilities = len(capabilities)
    for i, capability in enumerate(capabilities):
        config.set_compute_capability(getattr(api.ComputeCapability, f"SM{capability.replace('.', '')}"), i)


def _start_timings(session: Session, config: Any, timing: TimingFile | None) -> Any:
    """The runtime's timing cache, filled with earlier timings; None where it is not wanted."""
    if timing is None:
        return None
    timings = config.create_timing_cache(timing.read())
    if timings is None or not config.set_timing_cache(timings, False):  # False: none of another device
        raise session.fail(f"refuses the timing cache {timing.path}", "remove that file")
    return timings


def _serialise(session: Session, network: Any, config: Any) -> bytes:
    try:
        engine = session.builder.build_serialized_network(network, config)
    except RuntimeError as error:
        raise BackendError(f"{session.adapter.title}: the build failed: {one_line(error)}; export again") from error
    if engine is None:
        raise session.fail("the build failed", "try other settings, or another precision")
    return bytes(engine)


def _inspect(session: Session, engine: bytes, precision: str, settings: BuildSettings) -> bool:
    """Look into the built engine where a GPU lets it be loaded; whether that was so."""
    if find_gpu() is None or settings.strip_weights:
        return False
    api = session.adapter.api
    runtime = api.Runtime(session.log)
    if settings.version_compatible:
        runtime.engine_host_code_allowed = True  # it carries a runtime of its own, and was made a moment ago
    loaded = runtime.deserialize_cuda_engine(engine)
    if loaded is None:
        if session.adapter.name == TENSORRT:
            raise session.fail("does not load the engine that it built", "report this as a bug")
        return False  # TensorRT-RTX builds for GPUs that this machine need not have
    report = loaded.create_engine_inspector().get_engine_information(api.LayerInformationFormat.JSON)
    return check_engine_precision(session.adapter.title, precision, report)
