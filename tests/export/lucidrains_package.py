"""lucidrains' package for the tests, also where torchvision cannot be loaded."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any
from unittest import mock

NAMES = ("torchvision", "torchvision.transforms", "torchvision.utils", "torchvision.models")


class Hollow(ModuleType):
    """A module whose every name is a mock."""

    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return mock.MagicMock(name=name)


def load() -> Any:
    """Import denoising_diffusion_pytorch; raises ImportError where it is not installed.

    It imports torchvision for its data loader. PyPI's torchvision does not load beside a CPU build of torch, and the
    networks do not need it, so a hollow one stands in while the package is imported.
    """
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        hollow = {name: Hollow(name) for name in NAMES}
    else:
        hollow = {}
    with mock.patch.dict(sys.modules, hollow):
        package = importlib.import_module("denoising_diffusion_pytorch")
        loaded = {name: module for name, module in sys.modules.items() if name not in hollow}
    sys.modules.update(loaded)
    return package
