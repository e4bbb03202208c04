"""Running a bundle's graphs as engines on an NVIDIA GPU: what the backends "tensorrt" and "tensorrt-rtx" share.

Engines come from the cache, or are built into it, which takes seconds to minutes. Options: those of `backends.cuda`;
`buckets` are also the batch sizes that engines are tuned for.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ddpm_deploy.backends.base import REMEDIES, Availability, GuardedBackend, device_index
from ddpm_deploy.backends.cuda import LOOP_OPTIONS, Device, Evaluator, checked_buckets, driver, open_loop
from ddpm_deploy.backends.cuda.gpus import Gpu, find_gpu
from ddpm_deploy.backends.cuda.tensorrt_evaluator import TensorRtEvaluator
from ddpm_deploy.backends.tensorrt.adapter import Adapter, open_adapter
from ddpm_deploy.backends.tensorrt.builder import build_engine
from ddpm_deploy.backends.tensorrt.cache import EngineCache, load_engine
from ddpm_deploy.backends.tensorrt.engines import engine_key, ensure_engine, make_builder
from ddpm_deploy.backends.tensorrt.execution import Engine
from ddpm_deploy.backends.tensorrt.host import HostRunner
from ddpm_deploy.backends.tensorrt.settings import TENSORRT, BuildSettings
from ddpm_deploy.backends.tensorrt.status import why_not_run
from ddpm_deploy.bundle import Bundle, ModelFile, TensorSpec
from ddpm_deploy.errors import BackendError, BackendUnavailable

OPTIONS = frozenset(LOOP_OPTIONS)
BATCHES = (1, 8, 32, 64, 256)
MOST_NUMBERS = 2**21  # of a batch: beyond it a GPU is busy with fewer samples, and builds run out of memory
PICTURES = ("x", "x_T", "noise")  # inputs that have the shape of a sample
ELSEWHERE = "use another backend here, or a machine with such a GPU"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """A runtime and the GPU that its engines run on."""

    adapter: Adapter
    gpu: Gpu
    index: int

    def open_device(self) -> Device:
        """The GPU, with a stream of its own."""
        return driver.CudaDevice(self.index)


class TensorRtBackend(GuardedBackend):
    """An engine on a GPU that is fed from the host; threads take turns. It owns the engine and its device.

    Results depend on the batch in their last bits, as each profile has kernels of its own.
    """

    def __init__(
        self, engine: Engine, place: Place, *, device: str, precision: str, details: Mapping[str, Any]
    ) -> None:
        self.name = place.adapter.name
        about = {
            "version": place.adapter.version,
            "placement": f"on {place.gpu.name}, compute capability {place.gpu.compute_capability}",
        }
        super().__init__(
            HostRunner(engine),
            engine.inputs,
            engine.outputs,
            device=device,
            precision=precision,
            threads=1,
            batch_invariant=False,
            details={**about, **details},
        )

    def layer_ms(self, feeds: Mapping[str, np.ndarray], calls: int = 20) -> dict[str, float]:
        """{layer: milliseconds of one evaluation}, in a context of its own that is slower and never captured."""
        runtime: HostRunner | None = self._runtime
        if runtime is None:
            raise BackendError(f"{self.name}: the backend is closed; open it again")
        self._feeds.check(feeds)
        return runtime.layer_ms(feeds, calls)

    def close(self) -> None:
        """Free the GPU's memory; calls that are running finish first."""
        runtime: HostRunner | None = self._runtime
        super().close()
        if runtime is not None and os.getpid() == self._pid:
            runtime.close()

    def _evaluate(self, runtime: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs: dict[str, np.ndarray] = runtime.run(feeds)
        return outputs


def availability(name: str) -> Availability:
    """Whether its engines run here; the runtime itself is looked for only where there is a GPU for them."""
    reason, remedy = why_not_run(name, find_gpu()), ELSEWHERE
    if reason is None:
        try:
            version = open_adapter(name).version
            return Availability(name, True, version=version, devices=("cuda",), precisions=("fp32",))
        except BackendUnavailable as error:
            reason, remedy = str(error).removeprefix(f"{name}: ").partition("; run ")[0], REMEDIES[name]
    return Availability(name, False, reason=reason, remedy=remedy)


def load(
    name: str,
    bundle: Bundle,
    *,
    role: str,
    precision: str,
    device: str,
    threads: int | None,
    options: Mapping[str, Any],
) -> TensorRtBackend:
    """Open the engine of a graph, and of the bundle's `step` graph a loop; builds those that are not in the cache.

    threads: of no use here, a call computes on the GPU.
    """
    place = find_place(name, device)
    batches = checked_buckets(options.get("buckets", default_batches(bundle.manifest.sample_shape)))
    file = bundle.file(role, precision, TENSORRT)
    with ExitStack() as stack:
        opened = place.open_device()
        stack.callback(opened.close)
        engine = cached_engine(place, bundle, file, batches, opened)
        backend = TensorRtBackend(engine, place, device=device, precision=precision, details={"batches": list(batches)})
        stack.pop_all()
        stack.callback(backend.close)
        if role == "denoiser":
            _make_resident(backend, place, bundle, batches, options)
        stack.pop_all()
    return backend


def open_model(
    name: str, model: bytes, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, device: str
) -> TensorRtBackend:
    """Build and open a small float32 ONNX model for batch 1, past the cache."""
    place, settings = find_place(name, device), BuildSettings()
    with ExitStack() as stack:
        opened = place.open_device()
        stack.callback(opened.close)
        with opened.active():
            built = build_engine(place.adapter, model, inputs, settings, precision="fp32")
        engine = Engine(place.adapter, built.engine, inputs, outputs, settings, opened)
        stack.pop_all()
    return TensorRtBackend(engine, place, device=device, precision="fp32", details={})


def find_place(name: str, device: str) -> Place:
    """The runtime and the GPU; BackendUnavailable where its engines cannot run there."""
    index = device_index(device)
    if index is None:
        raise BackendUnavailable(f"{name}: got device 'cpu', expected 'cuda': its engines run on an NVIDIA GPU only")
    gpu = find_gpu(index)
    reason = why_not_run(name, gpu)
    if gpu is None or reason is not None:
        raise BackendUnavailable(f"{name}: {device}: {reason}; {ELSEWHERE}")
    return Place(open_adapter(name), gpu, index)


def cached_engine(place: Place, bundle: Bundle, file: ModelFile, batches: Sequence[int], device: Device) -> Engine:
    """The engine of a graph on a device: from the cache, or built into it once, whoever asks at the same time."""
    settings = settings_for(bundle, file, batches)
    key, cache = engine_key(place.adapter, bundle, file, settings, place.gpu), EngineCache()
    build = make_builder(place.adapter, bundle, file, key, cache)

    def told() -> Any:
        logger.info(
            "%s: building the engine, for batches up to %d, into %s", key.title, settings.batches[-1], cache.root
        )
        return build()

    with device.active():
        ensure_engine(cache, key, told)
    return Engine(place.adapter, load_engine(cache, key), file.inputs, file.outputs, key.settings, device)


def settings_for(bundle: Bundle, file: ModelFile, batches: Sequence[int]) -> BuildSettings:
    """Profiles for these batches, at the size that the bundle was trained for where the graph leaves it free."""
    shape = bundle.manifest.sample_shape
    picture = next((spec.shape[-len(shape) :] for spec in file.inputs if spec.name in PICTURES), ())
    free = {axis: size for axis, size in zip(picture, shape, strict=False) if isinstance(axis, str)}
    axes = tuple((axis, (size, size, size)) for axis, size in sorted(free.items()))
    return BuildSettings(batches=tuple(sorted(set(batches))), axes=axes)


def default_batches(sample_shape: Sequence[int]) -> tuple[int, ...]:
    """As many of BATCHES as a GPU gains from: for 32x32 pictures all, for 256x256 up to 8."""
    return tuple(batch for batch in BATCHES if batch == 1 or batch * prod(sample_shape) <= MOST_NUMBERS)


def _make_resident(
    backend: TensorRtBackend, place: Place, bundle: Bundle, batches: Sequence[int], options: Mapping[str, Any]
) -> None:
    """Give the backend a loop around the engine of the bundle's `step` graph."""

    def evaluator(device: Device) -> Evaluator:
        file = bundle.file("step", backend.precision, TENSORRT)
        return TensorRtEvaluator(cached_engine(place, bundle, file, batches, device))

    backend.loop, about = open_loop(backend.name, place.index, evaluator, {**options, "buckets": batches})
    backend.details = {**backend.details, "loop": about}
