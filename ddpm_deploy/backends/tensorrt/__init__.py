"""TensorRT and TensorRT-RTX: engines built from a bundle's graphs on the target machine, and kept in a cache.

Needs neither torch nor onnx. Its use is described in docs/tensorrt.md.
"""

from ddpm_deploy.backends.cuda.gpus import Gpu, find_gpu
from ddpm_deploy.backends.tensorrt.adapter import Adapter, open_adapter
from ddpm_deploy.backends.tensorrt.builder import BuiltEngine, build_engine
from ddpm_deploy.backends.tensorrt.cache import EngineCache, load_engine
from ddpm_deploy.backends.tensorrt.engines import engine_key, ensure_engine, make_builder
from ddpm_deploy.backends.tensorrt.record import EngineKey, EngineRecord
from ddpm_deploy.backends.tensorrt.settings import BuildSettings

__all__ = [
    "Adapter",
    "BuildSettings",
    "BuiltEngine",
    "EngineCache",
    "EngineKey",
    "EngineRecord",
    "Gpu",
    "build_engine",
    "engine_key",
    "ensure_engine",
    "find_gpu",
    "load_engine",
    "make_builder",
    "open_adapter",
]
