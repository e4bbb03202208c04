"""Which backends the contract suite runs, and how a missing one is skipped or, where it is required, failed.

DDPM_TEST_BACKENDS=onnxruntime,openvino:bf16 names, by their test ids, the cases that must be there: `onnxruntime` is
float32 on the CPU, `openvino:bf16` another precision, `torch:fp16:cuda` another device.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from ddpm_deploy.backends import Backend, available_backends, open_backend
from ddpm_deploy.backends.tensorrt import Adapter, open_adapter
from ddpm_deploy.backends.tensorrt.adapter import MODULES
from ddpm_deploy.backends.tensorrt.cache import VARIABLE
from ddpm_deploy.bundle import Bundle, read_bundle
from ddpm_deploy.errors import BackendUnavailable

Feeds = dict[str, np.ndarray]

sys.path.append(str(Path(__file__).parent / "cuda"))  # its host device is for tests of this folder too


class Case(NamedTuple):
    backend: str
    precision: str = "fp32"
    device: str = "cpu"

    @property
    def name(self) -> str:
        default = Case("")
        parts = [self.backend, *(part for part, usual in zip(self[1:], default[1:], strict=True) if part != usual)]
        return ":".join(parts)

    def missing(self) -> str | None:
        """Why this case cannot run on this machine, or None."""
        found = available_backends()[self.backend]
        if not found.available:
            return f"{found.reason}; {found.remedy}"
        if not any(device.startswith(self.device) for device in found.devices):
            return f"{self.backend} has devices {', '.join(found.devices)}, not {self.device}"
        if self.precision not in found.precisions:
            return f"{self.backend} computes in {', '.join(found.precisions)} here, not in {self.precision}"
        return None


CASES = [
    Case("torch"),
    Case("torch", "bf16"),
    Case("torch", "fp32", "cuda"),
    Case("torch", "fp16", "cuda"),
    Case("torch", "bf16", "cuda"),
    Case("onnxruntime"),
    Case("onnxruntime", "fp32", "cuda"),
    Case("openvino"),
    Case("openvino", "bf16"),
    Case("tensorrt", "fp32", "cuda"),
    Case("tensorrt-rtx", "fp32", "cuda"),
]


KNOWN = [*(case.name for case in CASES), *MODULES, "node"]  # MODULES build engines, node runs sampler files
REQUIRED = set(filter(None, os.environ.get("DDPM_TEST_BACKENDS", "").split(",")))
if unknown := REQUIRED.difference(KNOWN):
    raise pytest.UsageError(f"DDPM_TEST_BACKENDS: got {unknown}, expected some of {KNOWN}")


def require(case: Case) -> None:
    """Skip the test, or fail it where the environment says that this case must be there."""
    reason = case.missing()
    if reason is None:
        return
    if case.name in REQUIRED:
        pytest.fail(f"DDPM_TEST_BACKENDS requires {case.name}: {reason}")
    pytest.skip(f"{case.name}: {reason}")


@pytest.fixture(scope="session", params=[case for case in CASES if not case.missing()], ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def any_case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(scope="session")
def bundle(labelled_bundle: Path) -> Bundle:
    return read_bundle(labelled_bundle)


@pytest.fixture(scope="session", autouse=True)
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep engines that tests build out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(tmp_path_factory.mktemp("engines")))
        yield


@pytest.fixture(scope="session")
def open_case(case: Case, bundle: Bundle) -> Callable[..., Backend]:
    """Opens the case's backend anew."""
    return lambda **options: open_backend(case.backend, bundle, precision=case.precision, device=case.device, **options)


@pytest.fixture(scope="session")
def backend(open_case: Callable[..., Backend]) -> Iterator[Backend]:
    """One backend for all tests that leave it open."""
    with open_case() as opened:
        yield opened


@pytest.fixture
def require_case() -> Callable[[Case], None]:
    return require


@pytest.fixture
def require_on_gpu() -> Callable[[str, str], None]:
    """(backend, precision): skips or fails where it cannot run on a CUDA device."""
    return lambda backend, precision: require(Case(backend, precision, "cuda"))


@pytest.fixture(scope="session")
def reference(bundle: Bundle) -> Iterator[Backend]:
    require(Case("torch"))
    with open_backend("torch", bundle) as opened:
        yield opened


@pytest.fixture(scope="session")
def rtx() -> Adapter:
    """TensorRT-RTX, which builds engines on machines without a GPU too."""
    try:
        return open_adapter("tensorrt-rtx")
    except BackendUnavailable as error:
        if "tensorrt-rtx" in REQUIRED:
            pytest.fail(f"DDPM_TEST_BACKENDS requires tensorrt-rtx: {error}")
        pytest.skip(str(error))


@pytest.fixture
def feeds() -> Callable[..., Feeds]:
    return make_feeds


@pytest.fixture(scope="session")
def run_python() -> Callable[..., str]:
    """Runs code in a fresh interpreter that imports from where this one does, and returns what it prints."""

    def run(code: str, *arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def make_feeds(batch: int, seed: int = 0) -> Feeds:
    rng = np.random.default_rng(seed)
    return {
        "x": rng.standard_normal((batch, 3, 8, 8), dtype=np.float32),
        "t": rng.uniform(0, 99, batch).astype(np.float32),
        "labels": rng.integers(0, 3, batch),
    }
