"""Execution providers in packages of their own: found by the provider's name, registered once, missing ones told."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from ddpm_deploy.backends import onnxruntime_plugins as plugins
from ddpm_deploy.backends.onnxruntime import provider_for
from ddpm_deploy.errors import BackendUnavailable

PACKAGE = "onnxruntime_ep_of_a_test"
WORKS = """
def get_library_path(): return "/somewhere/libprovider.so"
def get_ep_names(): return ["OfATestExecutionProvider", "AnotherExecutionProvider"]
"""
OLD = WORKS.replace("get_ep_names(): return [", "get_ep_name(): return (").replace(', "AnotherExecutionProvider"]', ")")
BROKEN = "raise OSError('no library')"


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """What was registered with ONNX Runtime, which then has a device for the first provider."""
    calls: list[tuple[str, str]] = []
    devices = [SimpleNamespace(ep_name="CPUExecutionProvider"), SimpleNamespace(ep_name="OfATestExecutionProvider")]
    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", lambda *a: calls.append(a), raising=False)
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: devices, raising=False)
    plugins._register.cache_clear()
    yield calls
    plugins._register.cache_clear()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Install a package with this source."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)

    def write(source: str) -> None:
        (tmp_path / f"{PACKAGE}.py").write_text(source)

    return write


@pytest.mark.parametrize("source", [WORKS, OLD], ids=["several names", "one name"])
def test_the_package_that_has_the_provider_is_registered_once(
    source: str, install: Callable[[str], None], registered: list[Any]
) -> None:
    install(source)
    for _ in range(2):
        assert plugins.plugin_device("OfATestExecutionProvider").ep_name == "OfATestExecutionProvider"
    assert registered == [(PACKAGE, "/somewhere/libprovider.so")]
    assert provider_for("OfATestExecutionProvider") == ("OfATestExecutionProvider", {})


def test_a_provider_without_a_device_here_is_told(install: Callable[[str], None], registered: list[Any]) -> None:
    install(WORKS)
    with pytest.raises(BackendUnavailable, match="AnotherExecutionProvider: onnxruntime_ep_of_a_test finds no device"):
        plugins.plugin_device("AnotherExecutionProvider")


def test_a_provider_that_no_package_has_is_told(install: Callable[[str], None], registered: list[Any]) -> None:
    install(WORKS)
    assert plugins.plugin_device("ThirdExecutionProvider") is None
    with pytest.raises(BackendUnavailable, match="install the onnxruntime build or plugin that has it"):
        provider_for("ThirdExecutionProvider")
    assert registered == []


def test_a_package_that_cannot_be_imported_is_named(install: Callable[[str], None], registered: list[Any]) -> None:
    install(BROKEN)
    with pytest.raises(BackendUnavailable, match=f"{PACKAGE} cannot be imported: no library"):
        plugins.plugin_device("OfATestExecutionProvider")


def test_a_library_that_cannot_be_loaded_is_told(
    install: Callable[[str], None], registered: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, path: str) -> None:
        raise RuntimeError("libcuda.so.1: cannot open\nshared object file")

    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", refuse)
    install(WORKS)
    with pytest.raises(BackendUnavailable, match=r"cannot be loaded: libcuda.so.1: cannot open shared object file"):
        plugins.plugin_device("OfATestExecutionProvider")


def test_an_onnxruntime_without_plugins_is_to_be_upgraded(
    install: Callable[[str], None], registered: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(onnxruntime, "register_execution_provider_library")
    install(WORKS)
    with pytest.raises(BackendUnavailable, match=r"expected 1.24 or newer for .*pip install --upgrade onnxruntime"):
        plugins.plugin_device("OfATestExecutionProvider")
