"""Take a denoising diffusion model from PyTorch to production.

Importing this package loads numpy and nothing heavier; each runtime is loaded when a backend is opened.
"""

import logging

from ddpm_deploy.backends import Availability, available_backends
from ddpm_deploy.errors import (
    BackendError,
    BackendUnavailable,
    BundleError,
    DdpmDeployError,
    NonFiniteError,
    ParityError,
    ShardError,
    TrainingError,
)
from ddpm_deploy.sampler import Sampler

__version__ = "0.1.0"

__all__ = [
    "Availability",
    "BackendError",
    "BackendUnavailable",
    "BundleError",
    "DdpmDeployError",
    "NonFiniteError",
    "ParityError",
    "Sampler",
    "ShardError",
    "TrainingError",
    "__version__",
    "available_backends",
]

logging.getLogger(__name__).addHandler(logging.NullHandler())
