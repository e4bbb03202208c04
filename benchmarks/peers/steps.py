"""The peers that evaluate the network once. Each opens its own runtime in the way its documentation shows.

`open_...` is called where the `require_...` beside it has found nothing missing.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from benchmarks.peers.base import Array, PeerUnavailable, Setting, Step, require_packages, versions_of
from benchmarks.peers.plain import plain_export
from benchmarks.peers.torch_networks import compiled, eager, over_arrays, require_torch
from ddpm_deploy.backends.base import one_line
from ddpm_deploy.bundle import Bundle

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
HINTS = {"fp32": "f32", "bf16": "bf16"}


def open_eager(bundle: Bundle, setting: Setting) -> Step:
    """diffusers without a compiler."""
    evaluate = over_arrays(eager(bundle, setting), setting)
    description = f"diffusers' UNet2DModel, {setting.precision} weights, channels_last, inference_mode"
    return Step("diffusers eager", setting, description, versions_of("torch", "diffusers"), evaluate)


def open_compiled(bundle: Bundle, setting: Setting) -> Step:
    """Compiled and warmed up for `setting.batch`; PeerUnavailable where torch.compile fails, as without a compiler."""
    evaluate = over_arrays(compiled(bundle, setting), setting)
    x = np.zeros((setting.batch, *bundle.manifest.sample_shape), np.float32)
    try:
        for _ in range(3):  # compiles, records a CUDA graph, replays it
            evaluate(x, np.zeros(setting.batch, np.float32))
    except Exception as error:
        raise PeerUnavailable(f"torch.compile failed: {one_line(error)[:300]}") from error
    how = "max-autotune, CUDA graphs" if setting.on_cuda else "inductor, freezing"
    description = f"diffusers' UNet2DModel, {setting.precision} weights, channels_last, {how}, batch {setting.batch}"
    return Step("torch.compile", setting, description, versions_of("torch", "diffusers"), evaluate)


def open_onnxruntime(bundle: Bundle, setting: Setting) -> Step:
    """Default session options apart from the threads, which spin briefly."""
    session = _session(plain_export(bundle, setting.cache, setting.precision), setting)

    def evaluate(x: Array, t: Array) -> Array:
        prediction: Array = session.run(None, {"x": x, "t": t})[0]
        return prediction

    description = f"torch.onnx.export of diffusers' UNet2DModel, {setting.precision}, dynamic batch, default options"
    versions = versions_of("onnxruntime", "torch", "diffusers")
    return Step("ONNX Runtime, plain export", setting, description, versions, evaluate)


def open_openvino(bundle: Bundle, setting: Setting) -> Step:
    """Read from the same file, with its shapes made static and the latency hint, as its documentation advises."""
    from ddpm_deploy.backends.openvino import _core  # a second core in one process would crash it

    config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": HINTS[setting.precision], "PERFORMANCE_HINT": "LATENCY"}
    if setting.threads is not None:
        config["INFERENCE_NUM_THREADS"] = setting.threads
    core = _core(os.getpid())
    graph = core.read_model(plain_export(bundle, setting.cache))
    graph.reshape({"x": [setting.batch, *bundle.manifest.sample_shape], "t": [setting.batch]})
    model = core.compile_model(graph, "CPU", config)

    def evaluate(x: Array, t: Array) -> Array:
        if len(x) != setting.batch:
            raise ValueError(f"batch: got {len(x)}, expected {setting.batch}, for which the network is compiled")
        prediction: Array = model({"x": x, "t": t})[0]  # a copy
        return prediction

    description = f"torch.onnx.export of diffusers' UNet2DModel, reshaped to batch {setting.batch}, latency hint"
    versions = versions_of("openvino", "torch", "diffusers")
    return Step("OpenVINO, plain export", setting, description, versions, evaluate)


def require_compiler(setting: Setting) -> None:
    """PeerUnavailable where torch.compile has no chance."""
    require_torch(setting)
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError) as error:
        raise PeerUnavailable(f"torch.compile has no C++ compiler: {one_line(error)[:200]}") from error


def require_onnxruntime(setting: Setting) -> None:
    """PeerUnavailable where the package, its provider or kernels of the precision are not there."""
    if setting.precision != "fp32" and not setting.on_cuda:
        raise PeerUnavailable(f"ONNX Runtime's convolutions on CPUs compute in float32, not in {setting.precision}")
    require_packages(["onnxruntime", "onnxscript", "torch", "diffusers"])
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    provider = CUDA if setting.on_cuda else CPU
    if provider not in onnxruntime.get_available_providers():
        raise PeerUnavailable(f"this build of ONNX Runtime {onnxruntime.__version__} has no {provider}")


def require_openvino(setting: Setting) -> None:
    """PeerUnavailable where the package or the precision is not there."""
    require_packages(["openvino", "onnxscript", "torch", "diffusers"])
    from ddpm_deploy.backends.openvino import availability

    if setting.on_cuda:
        raise PeerUnavailable("OpenVINO does not run on CUDA devices")
    if setting.precision not in availability().precisions:
        raise PeerUnavailable(f"OpenVINO does not compute in {setting.precision} on this CPU")


def _session(model: bytes, setting: Setting) -> Any:
    import onnxruntime

    from ddpm_deploy.backends.onnxruntime import spin_briefly

    options = onnxruntime.SessionOptions()
    spin_briefly(options)
    if setting.threads is not None:
        options.intra_op_num_threads = setting.threads
    providers: list[Any] = [CPU]
    if setting.on_cuda:
        onnxruntime.preload_dlls()
        providers = [(CUDA, {"use_tf32": "0"})]
    session = onnxruntime.InferenceSession(model, options, providers=providers)
    if setting.on_cuda and session.get_providers()[0] != CUDA:
        raise PeerUnavailable(f"ONNX Runtime fell back to {', '.join(session.get_providers())}")
    return session
