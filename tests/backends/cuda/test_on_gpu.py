"""What needs a GPU: noise and loops on a real device, against numpy and against the host's own loop on the CPU.

Each test is skipped with the reason where there is none, or fails where DDPM_TEST_BACKENDS asks for its case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from ddpm_deploy import Sampler
from ddpm_deploy.backends.cuda.device import Buffers
from ddpm_deploy.backends.cuda.driver import CudaDevice
from ddpm_deploy.bundle import Bundle
from ddpm_deploy.errors import BackendUnavailable, NonFiniteError
from ddpm_deploy.noise import initial_noise

SEED, B, N = 2**63 + 5, 3, 3073
ERRORS = {"fp32": 1e-3, "tf32": 2e-2, "fp16": 2e-2, "bf16": 0.15}  # relative, of samples of random weights
LABELS = np.array([0, 1, 2, 1, 0], np.int64)
CASES = [
    ("torch", "fp32", {}),
    ("torch", "tf32", {}),
    ("torch", "fp16", {}),
    ("torch", "bf16", {}),
    ("torch", "fp32", {"compile": True}),
    ("onnxruntime", "fp32", {}),
    ("tensorrt", "fp32", {}),
    ("tensorrt-rtx", "fp32", {}),
]


@pytest.fixture(scope="module")
def device() -> Iterator[CudaDevice]:
    try:
        opened = CudaDevice()
    except BackendUnavailable as error:
        pytest.skip(str(error))
    yield opened
    opened.close()


@pytest.fixture(params=CASES, ids=lambda case: ":".join([*case[:2], *case[2]]))
def on_gpu(
    request: pytest.FixtureRequest, stepped: Bundle, require_on_gpu: Callable[[str, str], None]
) -> Iterator[tuple[Sampler, float]]:
    """(a sampler whose loop is on the device, the relative error that its precision may have)."""
    name, precision, options = request.param
    require_on_gpu(name, precision)
    settings: Any = {"backend": name, "precision": precision, "options": {"buckets": (1, 4), **options}}
    with Sampler.load(stepped, device="cuda", **settings) as sampler:
        assert sampler.backend.details["loop"] == "resident on the device"
        yield sampler, ERRORS[precision]


@pytest.fixture(scope="module")
def by_host(stepped: Bundle) -> Iterator[Sampler]:
    with Sampler.load(stepped, threads=1) as sampler:
        yield sampler


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(("solver", "steps"), [("unipc", 5), ("ddpm", 7), ("ddim", 53)])
def test_loop_on_the_device_draws_what_the_host_draws(
    on_gpu: tuple[Sampler, float], by_host: Sampler, solver: str, steps: int
) -> None:
    sampler, error = on_gpu
    for n, seed in ((1, 0), (3, 1), (5, 1)):  # a bucket, a padded one, more than the largest; graphs used again
        settings: Any = {"solver": solver, "steps": steps, "seed": seed, "condition": {"labels": LABELS[:n]}}
        assert relative_error(sampler.sample(n, **settings), by_host.sample(n, **settings)) < error


def test_output_that_is_not_finite_is_named_on_the_device(on_gpu: tuple[Sampler, float]) -> None:
    x_T = np.zeros((3, 3, 8, 8), np.float32)
    x_T[1] = np.nan
    with pytest.raises(NonFiniteError, match=r"row 0 .* not finite for samples \[1\]"):
        on_gpu[0].sample(x_T=x_T, steps=3, condition={"labels": 0})


def test_device_draws_the_noise_of_numpy(device: CudaDevice) -> None:
    layout: Any = {"state": (np.float32, (1, B, N)), "seeds": (np.uint64, (B,)), "samples": (np.uint64, (B,)),
                   "counter": (np.int32, (2,)), "first_bad": (np.int32, (B,))}  # fmt: skip
    buffers = Buffers(device, layout)
    buffers.write("seeds", np.full(B, SEED, np.uint64))
    buffers.write("samples", np.arange(7, 7 + B))
    at = buffers.address
    with device.active():
        device.launch("ddpm_start", B * -(-N // 8), at("state"), None, at("seeds"), at("samples"), at("counter"),
                      at("first_bad"), B, N, 1, N, B * N)  # fmt: skip
    np.testing.assert_array_max_ulp(buffers.read("state")[0], initial_noise(SEED, range(7, 7 + B), (N,)), maxulp=1)
    buffers.free()
