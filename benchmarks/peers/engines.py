"""TensorRT as one writes it by hand: an engine of the plain export for one batch size, on tensors of torch.

The host enqueues each evaluation; nothing is captured, and our engine builder, cache and loop have no part in it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from benchmarks.peers.base import PeerUnavailable, Setting, Step, require_packages, versions_of
from benchmarks.peers.plain import plain_export
from benchmarks.peers.torch_networks import over_arrays
from ddpm_deploy.backends.base import device_index
from ddpm_deploy.backends.cuda.gpus import find_gpu
from ddpm_deploy.backends.tensorrt.adapter import ALWAYS_STRONG, Adapter, Session, open_adapter, said
from ddpm_deploy.backends.tensorrt.settings import TENSORRT, TENSORRT_RTX
from ddpm_deploy.backends.tensorrt.status import why_not_run
from ddpm_deploy.bundle import Bundle
from ddpm_deploy.errors import BackendError, BackendUnavailable

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.peers.torch_networks import Network

TITLES = {TENSORRT: "TensorRT, plain export", TENSORRT_RTX: "TensorRT-RTX, plain export"}
PACKAGES = {TENSORRT: "tensorrt", TENSORRT_RTX: "tensorrt-rtx-cu13"}

_engines: dict[Any, bytes] = {}


def require_engines(setting: Setting, *, runtime: str) -> None:
    """PeerUnavailable where the runtime or a GPU for its engines is not there. runtime: a key of `TITLES`."""
    if not setting.on_cuda:
        raise PeerUnavailable("TensorRT runs on NVIDIA GPUs only")
    require_packages(["onnxscript", "torch", "diffusers"])
    reason = why_not_run(runtime, find_gpu(device_index(setting.device) or 0))
    if reason is not None:
        raise PeerUnavailable(f"{runtime}: {reason}")
    _adapter(runtime)


def open_engine(bundle: Bundle, setting: Setting, *, runtime: str) -> Step:
    """From host arrays to host arrays."""
    description = f"torch.onnx.export of diffusers' UNet2DModel, engine for batch {setting.batch}, {setting.precision}"
    versions = versions_of(PACKAGES[runtime], "torch", "diffusers")
    evaluate = over_arrays(engine_network(bundle, setting, runtime=runtime), setting)
    return Step(TITLES[runtime], setting, description, versions, evaluate)


def engine_network(bundle: Bundle, setting: Setting, *, runtime: str) -> Network:
    """(x (B, *S) float32, t (B,) or ()) -> prediction float32, on the device; PeerUnavailable where a build fails."""
    adapter = _adapter(runtime)
    key = (adapter.title, bundle.digest, setting.precision, setting.batch)
    try:
        with _active(setting):
            if key not in _engines:
                _engines[key] = build_plain(adapter, bundle, setting)
            context = _context(adapter, _engines[key])
    except (BackendError, BackendUnavailable) as error:
        raise PeerUnavailable(str(error)) from error
    for name, shape in _inputs(bundle, setting).items():
        context.set_input_shape(name, shape)
    return _network(context, setting)


def build_plain(adapter: Adapter, bundle: Bundle, setting: Setting) -> bytes:
    """The engine, for batches of `setting.batch` alone; needs a GPU for TensorRT, and none for TensorRT-RTX.

    TensorRT 10 is told the precision by its builder's flags and may choose float32 for a layer, as its documentation
    has it; later ones and TensorRT-RTX know no such flags and take a network that was narrowed before its export.
    """
    session = adapter.open()
    flagged = adapter.name == TENSORRT and int(adapter.version.partition(".")[0]) < ALWAYS_STRONG
    exported = plain_export(bundle, setting.cache, "fp32" if flagged else setting.precision)
    network = session.builder.create_network(0 if flagged else adapter.strong_flags)
    parser = adapter.api.OnnxParser(network, session.log)
    if not parser.parse(exported):
        raise session.fail("does not read the plain export", "none but another version may")
    config = _configured(session, bundle, setting)
    if flagged and setting.precision != "fp32":
        config.set_flag(getattr(adapter.api.BuilderFlag, setting.precision.upper()))
    engine = session.builder.build_serialized_network(network, config)
    del parser  # it holds the weights
    if engine is None:
        raise session.fail("the plain export does not build", "none but another version may")
    return bytes(engine)


def _configured(session: Session, bundle: Bundle, setting: Setting) -> Any:
    config, profile = session.builder.create_builder_config(), session.builder.create_optimization_profile()
    for name, shape in _inputs(bundle, setting).items():
        profile.set_shape(name, shape, shape, shape)
    config.add_optimization_profile(profile)
    if setting.precision == "fp32":
        config.clear_flag(session.adapter.api.BuilderFlag.TF32)
    return config


def _inputs(bundle: Bundle, setting: Setting) -> dict[str, tuple[int, ...]]:
    return {"x": (setting.batch, *bundle.manifest.sample_shape), "t": (setting.batch,)}


def _context(adapter: Adapter, data: bytes) -> Any:
    """Of the engine, which was made in this very process."""
    log, runtime = adapter.open_runtime()
    engine = runtime.deserialize_cuda_engine(data)
    context = None if engine is None else engine.create_execution_context()
    if context is None:
        raise BackendError(f"{adapter.title}: does not open the engine that it built: {said(log)}")
    return context


def _network(context: Any, setting: Setting) -> Network:
    import torch

    enqueue = _enqueued(context, setting)

    def evaluate(x: Tensor, t: Tensor) -> Tensor:
        if len(x) != setting.batch:
            raise ValueError(f"batch: got {len(x)}, expected {setting.batch}, for which the engine is built")
        x, t = x.float().contiguous(), t.float().expand(setting.batch).contiguous()
        out = torch.empty_like(x)  # a new one each time, as a scheduler keeps what it was given
        for name, tensor in (("x", x), ("t", t), ("prediction", out)):
            context.set_tensor_address(name, tensor.data_ptr())
        if not enqueue():
            raise BackendError("TensorRT: the execution of the plain export failed")
        return out

    return evaluate


def _enqueued(context: Any, setting: Setting) -> Callable[[], bool]:
    """On a stream of its own, as TensorRT wants it, between what torch enqueued before and will enqueue after."""
    if not setting.on_cuda:
        return lambda: bool(context.execute_async_v3(0))
    import torch

    cuda: Any = torch.cuda  # partly untyped
    side = cuda.Stream(setting.device)

    def enqueue() -> bool:
        current = cuda.current_stream(setting.device)
        side.wait_stream(current)
        with _active(setting):
            done = bool(context.execute_async_v3(side.cuda_stream))
        current.wait_stream(side)
        return done

    return enqueue


def _active(setting: Setting) -> AbstractContextManager[Any]:
    """The device is the current one, on which TensorRT builds and runs."""
    if not setting.on_cuda:
        return nullcontext()
    import torch

    cuda: Any = torch.cuda
    found: AbstractContextManager[Any] = cuda.device(setting.device)
    return found


def _adapter(runtime: str) -> Adapter:
    try:
        return open_adapter(runtime)
    except BackendUnavailable as error:
        raise PeerUnavailable(str(error)) from error
