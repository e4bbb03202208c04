"""The CUDA device over a stand-in for the driver: contexts, capture, errors in one sentence."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fake_driver import CUresult, FakeDriver, bindings

from ddpm_deploy.backends.cuda import OutOfDeviceMemory, driver
from ddpm_deploy.backends.cuda.device import ALIGNMENT, Buffers
from ddpm_deploy.backends.cuda.driver import CudaDevice
from ddpm_deploy.backends.tensorrt import find_gpu
from ddpm_deploy.errors import BackendError, BackendUnavailable
from ddpm_deploy.noise import initial_noise


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    found = FakeDriver()
    for name, module in bindings(found).items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(driver, "compiled", lambda capability: b"code for %d.%d" % capability)
    return found


@pytest.fixture
def device(fake: FakeDriver) -> Iterator[CudaDevice]:
    opened = CudaDevice()
    yield opened
    opened.close()
    assert fake.current == []
    assert fake.memory == {}


def start(device: CudaDevice, buffers: Buffers, B: int, n: int) -> None:
    at = buffers.address
    device.launch("ddpm_start", B * -(-n // 8), at("state"), at("x_T"), at("seeds"), at("samples"), at("counter"),
                  at("first_bad"), B, n, 1, n, B * n)  # fmt: skip


def layout(B: int, n: int) -> dict[str, Any]:
    return {"state": (np.float32, (1, B, n)), "seeds": (np.uint64, (B,)), "samples": (np.uint64, (B,)),
            "counter": (np.int32, (2,)), "first_bad": (np.int32, (B,))}  # fmt: skip


def test_kernels_write_into_memory_of_the_device(device: CudaDevice) -> None:
    buffers = Buffers(device, layout(3, 20))
    buffers.write("seeds", np.full(3, 9))
    buffers.write("samples", np.arange(3))
    with device.active():
        start(device, buffers, 3, 20)
    expected = initial_noise(9, range(3), (20,))
    np.testing.assert_array_max_ulp(buffers.read("state")[0], expected, maxulp=1)
    buffers.free()


def test_a_captured_graph_does_its_work_only_when_it_is_replayed(device: CudaDevice) -> None:
    buffers = Buffers(device, layout(1, 4))
    buffers.write("state", np.zeros(4))
    buffers.write("seeds", np.zeros(1))
    buffers.write("samples", np.zeros(1))
    replay = device.capture(lambda: start(device, buffers, 1, 4))
    assert not buffers.read("state").any()
    with device.active():
        replay()
    first = buffers.read("state")
    assert first.all()
    buffers.write("seeds", np.ones(1))  # what a graph reads is looked up when it runs
    with device.active():
        replay()
    assert (buffers.read("state") != first).all()
    buffers.free()


def test_a_failure_while_capturing_ends_the_capture_and_is_what_is_raised(device: CudaDevice, fake: FakeDriver) -> None:
    def enqueue() -> None:
        fake.fails["cuStreamEndCapture"] = CUresult.CUDA_ERROR_INVALID_VALUE  # as of a capture that was spoilt
        fake.capturing = None
        raise OutOfDeviceMemory("no room")

    with pytest.raises(OutOfDeviceMemory, match="no room"):
        device.capture(enqueue)
    assert "cuStreamEndCapture" in fake.calls
    device.synchronize()


def test_a_graph_that_does_not_fit_leaves_nothing_behind(device: CudaDevice, fake: FakeDriver) -> None:
    fake.fails["cuGraphInstantiate"] = CUresult.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(OutOfDeviceMemory):
        device.capture(lambda: None)
    assert fake.calls.count("cuGraphDestroy") == 1


def test_graphs_can_be_freed_before_the_device_is_closed(device: CudaDevice, fake: FakeDriver) -> None:
    device.capture(lambda: None)
    device.free_graphs()
    device.capture(lambda: None)
    device.close()
    assert fake.calls.count("cuGraphExecDestroy") == 2


def test_tensors_begin_at_aligned_addresses_and_do_not_overlap(device: CudaDevice) -> None:
    buffers = Buffers(device, {"a": (np.float32, (3,)), "b": (np.uint64, (65,)), "c": (np.int32, ())})
    a, b, c = (buffers[name] for name in "abc")
    assert [tensor.address % ALIGNMENT for tensor in (a, b, c)] == [0, 0, 0]
    assert a.address + a.size_bytes <= b.address
    assert b.address + b.size_bytes <= c.address
    assert buffers.address("d") is None
    assert "d" not in buffers
    buffers.free()


def test_memory_that_is_missing_is_told_from_other_failures(device: CudaDevice, fake: FakeDriver) -> None:
    fake.fails["cuMemAlloc"] = CUresult.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(OutOfDeviceMemory, match="too little memory"):
        device.allocate(10**12)
    fake.fails["cuMemAlloc"] = CUresult.CUDA_ERROR_INVALID_VALUE
    with pytest.raises(BackendError, match="cuMemAlloc failed: CUDA_ERROR_INVALID_VALUE") as caught:
        device.allocate(1)
    assert not isinstance(caught.value, OutOfDeviceMemory)


def test_a_device_that_is_not_there_is_refused(fake: FakeDriver) -> None:
    with pytest.raises(BackendUnavailable, match=r"cuda:3: .*INVALID_DEVICE.*nvidia-smi"):
        CudaDevice(3)


def test_closing_twice_is_closing_once(fake: FakeDriver) -> None:
    opened = CudaDevice()
    opened.close()
    opened.close()
    assert fake.calls.count("cuStreamDestroy") == fake.calls.count("cuDevicePrimaryCtxRelease") == 1


def test_missing_bindings_are_named_with_the_command_that_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(BackendUnavailable, match=r"cannot be imported.*pip install 'ddpm-deploy\[cuda\]'"):
        CudaDevice()


@pytest.mark.skipif(find_gpu() is not None, reason="a null function must not reach a driver")
@pytest.mark.parametrize("kernel", driver.kernels())
def test_arguments_of_every_kernel_are_what_nvidias_bindings_pack(kernel: str) -> None:
    real: Any = pytest.importorskip("cuda.bindings.driver", reason="NVIDIA's bindings")
    unopened: Any = CudaDevice.__new__(CudaDevice)
    unopened._cuda, unopened._functions, unopened._stream = real, {kernel: real.CUfunction()}, real.CUstream()
    given = [None if i % 2 else 2**40 for i in range(len(driver.kernels()[kernel]))]
    with pytest.raises(RuntimeError, match="driver"):  # they are packed before its library is looked for
        unopened.launch(kernel, 1, *given)
    with pytest.raises(TypeError):
        unopened.launch(kernel, 1, "a", *given[1:])


def test_a_missing_driver_is_told_in_one_sentence(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(flags: int) -> None:
        raise RuntimeError("Failed to load\nlibcuda.so.1")

    monkeypatch.setattr(fake, "cuInit", missing)
    with pytest.raises(BackendUnavailable, match=r"Failed to load libcuda.so.1; .* needs an NVIDIA GPU"):
        CudaDevice()


def test_a_driver_without_a_device_is_told_in_one_sentence(fake: FakeDriver) -> None:
    fake.fails["cuInit"] = CUresult.CUDA_ERROR_NO_DEVICE
    with pytest.raises(BackendUnavailable, match=r"cuInit failed: CUDA_ERROR_NO_DEVICE; .* needs an NVIDIA GPU"):
        CudaDevice()


def test_a_driver_that_is_too_old_for_the_compiler_is_told(fake: FakeDriver) -> None:
    fake.fails["cuModuleLoadData"] = CUresult.CUDA_ERROR_INVALID_IMAGE
    with pytest.raises(BackendUnavailable, match=r"INVALID_IMAGE: .*update the driver, or install .*nvrtc"):
        CudaDevice()
    assert fake.calls.count("cuDevicePrimaryCtxRetain") == fake.calls.count("cuDevicePrimaryCtxRelease") == 1
    assert fake.current == []


def test_a_source_that_does_not_compile_is_told_with_the_compilers_words(monkeypatch: pytest.MonkeyPatch) -> None:
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="NVIDIA's runtime compiler")
    assert isinstance(nvrtc, types.ModuleType)
    monkeypatch.setattr(driver, "source", lambda: "this is no C")
    driver.compiled.cache_clear()
    try:
        with pytest.raises(BackendError, match=r"nvrtcCompileProgram failed: .*error"):
            driver.compiled((9, 0))
    except BackendUnavailable as error:
        pytest.skip(str(error))
    finally:
        driver.compiled.cache_clear()
