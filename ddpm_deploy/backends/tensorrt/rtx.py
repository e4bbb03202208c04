"""The backend "tensorrt-rtx": NVIDIA TensorRT for RTX."""

from functools import partial

from ddpm_deploy.backends.tensorrt import backend
from ddpm_deploy.backends.tensorrt.settings import TENSORRT_RTX

OPTIONS = backend.OPTIONS

availability = partial(backend.availability, TENSORRT_RTX)
load = partial(backend.load, TENSORRT_RTX)
open_model = partial(backend.open_model, TENSORRT_RTX)
