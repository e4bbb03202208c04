"""Training a noise predictor."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ddpm_deploy.digits import digits_arrays
from ddpm_deploy.train.config import TrainConfig

if TYPE_CHECKING:
    from ddpm_deploy.train.api import train
    from ddpm_deploy.train.data import Data, load_data
    from ddpm_deploy.train.runs import Run, load_run

__all__ = ["Data", "Run", "TrainConfig", "digits_arrays", "load_data", "load_run", "train"]

MODULES = {"Data": "data", "Run": "runs", "load_data": "data", "load_run": "runs", "train": "api"}


def __getattr__(name: str) -> Any:
    """Import torch, which takes seconds, only for those who train: not for `--help`."""
    if name in MODULES:
        return getattr(importlib.import_module(f"{__name__}.{MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
