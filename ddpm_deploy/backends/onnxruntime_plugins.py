"""Execution providers that come as packages of their own, `onnxruntime_ep_...`, beside any build of ONNX Runtime.

Such a package says where its library is and what its providers are called; ONNX Runtime loads the library when it is
registered, once in a process.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from functools import cache
from threading import Lock
from typing import Any

import onnxruntime

from ddpm_deploy.backends.base import one_line
from ddpm_deploy.errors import BackendUnavailable

PREFIX = "onnxruntime_ep_"

_registering = Lock()


def plugin_device(provider: str) -> Any:
    """The first device of a provider that an installed package brings, or None where no package has it.

    Raises BackendUnavailable where the package is there and its library or a device for it is not.
    """
    package = _package_of(provider)
    if package is None:
        return None
    with _registering:
        _register(package)
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == provider]
    if not devices:
        raise BackendUnavailable(
            f"onnxruntime: {provider}: {package} finds no device for it on this machine; use another device"
        )
    return devices[0]


def packages() -> list[str]:
    """The installed packages of this kind."""
    return sorted(found.name for found in pkgutil.iter_modules() if found.name.startswith(PREFIX))


def _package_of(provider: str) -> str | None:
    for name in packages():
        if provider in _names(_imported(name)):
            return name
    return None


def _names(module: Any) -> Iterator[str]:
    """Its providers; `get_ep_names` came after `get_ep_name`."""
    if hasattr(module, "get_ep_names"):
        yield from module.get_ep_names()
    elif hasattr(module, "get_ep_name"):
        yield module.get_ep_name()


@cache
def _register(package: str) -> None:
    if not hasattr(onnxruntime, "register_execution_provider_library"):
        raise BackendUnavailable(
            f"onnxruntime: got version {onnxruntime.__version__}, expected 1.24 or newer for {package}; "
            "run pip install --upgrade onnxruntime"
        )
    try:
        onnxruntime.register_execution_provider_library(package, _imported(package).get_library_path())
    except Exception as error:
        raise BackendUnavailable(f"onnxruntime: {package} cannot be loaded: {one_line(error)}") from error


def _imported(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except Exception as error:  # a broken installation may raise anything
        raise BackendUnavailable(f"onnxruntime: {package} cannot be imported: {one_line(error)}") from error
