"""An engine for a bundle's graph: from the cache, or built once whoever asks at the same time."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ddpm_deploy.backends.cuda.gpus import Gpu
from ddpm_deploy.backends.external import open_whole
from ddpm_deploy.backends.tensorrt.adapter import Adapter, no_gpu
from ddpm_deploy.backends.tensorrt.builder import build_engine
from ddpm_deploy.backends.tensorrt.cache import Built, EngineCache
from ddpm_deploy.backends.tensorrt.lock import build_lock
from ddpm_deploy.backends.tensorrt.profiles import relevant
from ddpm_deploy.backends.tensorrt.record import EngineKey, EngineRecord
from ddpm_deploy.backends.tensorrt.settings import TENSORRT_RTX, BuildSettings
from ddpm_deploy.backends.tensorrt.timing import TimingFile
from ddpm_deploy.bundle import Bundle, ModelFile
from ddpm_deploy.errors import BackendError, BackendUnavailable

ANY_DEVICE = "any"

logger = logging.getLogger(__name__)


def engine_key(
    adapter: Adapter, bundle: Bundle, file: ModelFile, settings: BuildSettings, gpu: Gpu | None
) -> EngineKey:
    """The key of an engine built here; BackendUnavailable where the runtime needs a GPU and there is none."""
    settings.require_known(adapter.name)
    if adapter.name == TENSORRT_RTX:
        device, driver = ANY_DEVICE, None
    elif gpu is None:
        raise BackendUnavailable(no_gpu(adapter, "none was found"))
    else:
        device, driver = f"{gpu.name}, compute capability {gpu.compute_capability}", gpu.driver
    return EngineKey(
        role=file.role,
        precision=file.precision,
        onnx_sha256=file.sha256,
        bundle_digest=bundle.digest,
        runtime=adapter.name,
        runtime_version=adapter.version,
        device=device,
        driver=driver,
        settings=relevant(file.inputs, settings),
    )


def make_builder(
    adapter: Adapter, bundle: Bundle, file: ModelFile, key: EngineKey, cache: EngineCache
) -> Callable[[], Built]:
    """What builds the engine of a key when it is called."""
    wanted = adapter.name != TENSORRT_RTX and key.settings.timing_cache is not False
    timing = TimingFile(cache.root, key.runtime, key.runtime_version, key.device, key.driver) if wanted else None
    return lambda: build_engine(
        adapter,
        open_whole(adapter.title, bundle, file),
        file.inputs,
        key.settings,
        precision=file.precision,
        timing=timing,
    )


def ensure_engine(
    cache: EngineCache,
    key: EngineKey,
    build: Callable[[], Built],
    *,
    force: bool = False,
    timeout_s: float | None = None,
    tell: Callable[[str], None] = logger.info,
) -> tuple[EngineRecord, bool]:
    """(the engine's record, whether it was built now); of many that ask at once, one builds and the others wait.

    force: build although it is there. timeout_s: how long to wait for other builders, None for ever.
    """
    if not force and (record := usable(cache, key, logger.debug)):
        return record, False
    cache.open()
    with build_lock(cache.lock_path, key.title, timeout_s=timeout_s, tell=tell):
        if not force and (record := usable(cache, key, tell)):
            return record, False
        return cache.store(key, build()), True


def usable(cache: EngineCache, key: EngineKey, tell: Callable[[str], None] = logger.info) -> EngineRecord | None:
    """The record of an engine that is there and whole; a damaged one is told of, and counts as missing."""
    try:
        found = cache.load(key)
    except BackendError as error:
        tell(str(error))
        return None
    return None if found is None else found[0]
