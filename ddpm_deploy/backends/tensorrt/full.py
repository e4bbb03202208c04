"""The backend "tensorrt": NVIDIA TensorRT 10 and 11."""

from functools import partial

from ddpm_deploy.backends.tensorrt import backend
from ddpm_deploy.backends.tensorrt.settings import TENSORRT

OPTIONS = backend.OPTIONS

availability = partial(backend.availability, TENSORRT)
load = partial(backend.load, TENSORRT)
open_model = partial(backend.open_model, TENSORRT)
