"""What differs between `tensorrt` 10, 11 and its stub, and on machines without a GPU, on a stand-in for the package."""

from __future__ import annotations

import ctypes
import importlib
import logging
import sys
from pathlib import Path
from typing import Any

import fake_tensorrt as fake
import pytest

from ddpm_deploy import doctor
from ddpm_deploy.backends.cuda.gpus import query, query_uuids
from ddpm_deploy.backends.tensorrt import BuildSettings, EngineCache, Gpu, build_engine, engine_key, open_adapter
from ddpm_deploy.backends.tensorrt import builder as builder_module
from ddpm_deploy.backends.tensorrt.adapter import LOG_NAME
from ddpm_deploy.backends.tensorrt.engines import make_builder
from ddpm_deploy.backends.tensorrt.status import statuses
from ddpm_deploy.backends.tensorrt.timing import TimingFile
from ddpm_deploy.bundle import TensorSpec, default_bundle, read_bundle
from ddpm_deploy.errors import BackendError, BackendUnavailable

INPUTS = (TensorSpec("x", ("B", 1, 8, 8), "float32"), TensorSpec("t", ("B",), "float32"))
H100 = Gpu("NVIDIA H100", "9.0", "580.65.06")


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a stand-in in the place of `tensorrt`."""

    def install(*args: Any, **options: Any) -> Any:
        module = fake.make_module(*args, **options)
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        return module

    monkeypatch.setattr(builder_module, "find_gpu", lambda: None)
    return install


def build(settings: BuildSettings | None = None, **options: Any) -> Any:
    adapter = open_adapter("tensorrt")
    return build_engine(adapter, b"", INPUTS, settings or BuildSettings(), **{"precision": "fp32", **options})


# -- versions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "strong", "flags"), [("10.9.0", True, 2), ("11.4.0", True, 2), ("11.4.0", False, 0)]
)
def test_networks_are_strongly_typed_in_every_version(install: Any, version: str, strong: bool, flags: int) -> None:
    module = install(version, strong=strong)
    assert build().engine == b"engine of " + version.encode()
    assert module.told["network_flags"] == flags


def test_tensorrt_10_without_strong_types_is_refused(install: Any) -> None:
    install("10.0.1", strong=False)
    with pytest.raises(BackendUnavailable, match="cannot type networks strongly"):
        open_adapter("tensorrt")


def test_tensorrt_8_is_refused(install: Any) -> None:
    install("8.6.1")
    with pytest.raises(
        BackendUnavailable, match=r"got version 8\.6\.1, expected 10 or newer; run pip install .*NVIDIA"
    ):
        open_adapter("tensorrt")


def test_every_setting_reaches_the_builder(install: Any) -> None:
    module = install()
    build(
        BuildSettings(
            batches=(1, 4),
            optimization_level=5,
            workspace_bytes=2**30,
            hardware_compatibility="ampere_plus",
            version_compatible=True,
            refit=True,
        )
    )
    told = module.told
    assert told["builder_optimization_level"] == 5
    assert told["WORKSPACE"] == 2**30
    assert told["hardware_compatibility_level"].name == "AMPERE_PLUS"
    assert told["flags"] == ["VERSION_COMPATIBLE", "REFIT"]
    assert told["profiles"] == [
        {"x": ((1, 1, 8, 8), (1, 1, 8, 8), (1, 1, 8, 8)), "t": ((1,), (1,), (1,))},
        {"x": ((2, 1, 8, 8), (4, 1, 8, 8), (4, 1, 8, 8)), "t": ((2,), (4,), (4,))},
    ]


def test_stripped_engines_are_refitted_with_the_same_weights(install: Any) -> None:
    module = install()
    build(BuildSettings(strip_weights=True))
    assert module.told["flags"] == ["STRIP_PLAN", "REFIT_IDENTICAL"]


def test_tf32_is_always_off(install: Any) -> None:
    module = install()
    build()
    assert module.told["cleared"] == ["TF32"]


def test_level_that_a_version_lacks_is_an_error(install: Any) -> None:
    install("10.0.0")
    with pytest.raises(BackendError, match=r"tensorrt 10\.0\.0: has no hardware_compatibility same_compute_capability"):
        build(BuildSettings(hardware_compatibility="same_compute_capability"))


def test_setting_of_the_other_runtime_is_refused_by_name(install: Any) -> None:
    install()
    with pytest.raises(ValueError, match="compute_capabilities: tensorrt has no such setting"):
        build(BuildSettings(compute_capabilities=("8.9",)))


# -- missing things ---------------------------------------------------------------------------------------------------


def test_machine_without_a_gpu_gets_one_sentence_that_offers_tensorrt_rtx(install: Any) -> None:
    install("10.9.0", gpu=False)
    with pytest.raises(BackendUnavailable) as caught:
        build()
    assert str(caught.value) == (
        "tensorrt 10.9.0: needs an NVIDIA GPU with its driver to build engines (CUDA initialization failure with "
        "error: 35); build where it runs, or use --target tensorrt-rtx, which builds without a GPU"
    )


def test_key_of_an_engine_needs_the_gpu_that_it_is_for(install: Any) -> None:
    install()
    bundle = read_bundle(default_bundle())
    with pytest.raises(BackendUnavailable, match=r"needs an NVIDIA GPU .*--target tensorrt-rtx"):
        engine_key(open_adapter("tensorrt"), bundle, bundle.manifest.files[0], BuildSettings(), None)


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'tensorrt'", name="tensorrt"),
        ModuleNotFoundError("No module named 'tensorrt_bindings'", name="tensorrt_bindings"),
        ImportError("libnvinfer.so.10: cannot open shared object file"),
        RuntimeError("This package is a placeholder"),
    ],
)
def test_package_without_libraries_gets_one_sentence_that_names_nvidias_index(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def import_module(name: str) -> Any:
        raise error

    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(BackendUnavailable) as caught:
        open_adapter("tensorrt")
    assert "NVIDIA's own index, the package on PyPI is a stub" in str(caught.value)
    assert "pip install tensorrt, with NVIDIA's package index as --extra-index-url" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_stub_that_imports_but_holds_nothing_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = type(sys)("tensorrt")
    module.__version__ = "11.4.0"
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    with pytest.raises(BackendUnavailable, match=r"is installed without its libraries .*stub"):
        open_adapter("tensorrt")


def test_unknown_runtime_is_refused() -> None:
    with pytest.raises(ValueError, match="target: got 'onnx', expected one of tensorrt, tensorrt-rtx"):
        open_adapter("onnx")


def test_statuses_say_what_can_be_built_and_run(install: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    install("10.9.0")
    monkeypatch.setattr("ddpm_deploy.backends.tensorrt.status.find_gpu", lambda: H100)
    full, rtx = statuses()
    assert (full.name, full.version, full.builds, full.runs, full.reason) == ("tensorrt", "10.9.0", True, True, None)
    if rtx.version is not None:
        assert (rtx.builds, rtx.runs) == (True, False)
        assert "NVIDIA H100 has compute capability 9.0, expected one of 7.5" in str(rtx.reason)
    install("10.9.0", gpu=False)
    broken = statuses()[0]
    assert (broken.version, broken.builds, broken.runs) == ("10.9.0", False, False)


def test_doctor_shows_builders_with_the_stubs_remedy_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    builders = doctor.render(doctor.examine()).partition("Engine builders")[2]
    (line,) = [line for line in builders.splitlines() if line.startswith("  ✗ tensorrt  ")]
    assert "NVIDIA's own index" in line
    assert "run pip install tensorrt, with NVIDIA's package index as --extra-index-url" in line


def test_doctor_says_why_a_builder_that_is_there_does_not_work(install: Any) -> None:
    install("10.9.0", gpu=False)
    text = doctor.render(doctor.examine())
    assert "✗ tensorrt     10.9.0        ✗ builds engines  ✗ can run them\n" in text
    assert "tensorrt 10.9.0: needs an NVIDIA GPU" in text


# -- what the runtime says --------------------------------------------------------------------------------------------


def test_failed_build_says_why(install: Any) -> None:
    install(fails="Error Code 10: could not find any implementation\nfor node X")
    with pytest.raises(BackendError, match=r"the build failed: Error Code 10: could not find any .* for node X; try"):
        build()


def test_log_goes_to_python_logging(install: Any, caplog: pytest.LogCaptureFixture) -> None:
    install()
    session = open_adapter("tensorrt").open()
    with caplog.at_level(logging.WARNING, logger=LOG_NAME):
        session.log.log(fake.Severity.WARNING, "slow path")
        session.log.log(fake.Severity.VERBOSE, "chatter")
        session.log.log(fake.Severity.ERROR, "broken")
    assert [(r.levelname, r.message) for r in caplog.records] == [("WARNING", "slow path"), ("ERROR", "broken")]
    assert list(session.log.errors) == ["broken"]


# -- precision --------------------------------------------------------------------------------------------------------


def test_file_that_claims_fp16_but_computes_in_fp32_is_refused(install: Any) -> None:
    install(layers=fake.FLOAT_LAYERS)
    with pytest.raises(BackendError, match="got 1 in fp32, expected some in fp16; the file is no fp16 graph"):
        build(precision="fp16")


def test_file_that_claims_fp32_but_computes_in_fp16_is_refused(install: Any) -> None:
    install(layers=fake.HALF_LAYERS)
    with pytest.raises(BackendError, match="got 1 in fp16, expected all in fp32"):
        build(precision="fp32")


REPORT_10 = {"Layers": [{"Name": "c", "Inputs": [{"Name": "a", "Format/Datatype": "Row major linear FP16 format"}]}]}
REPORT_11 = {"Layers": [{"Name": "c", "Outputs": [{"Name": "b", "DataType": "Half", "Format": "kLINEAR"}]}]}
REPORT_FLOAT = {"Layers": [{"Name": "c", "Outputs": [{"Name": "b", "DataType": "Float", "Format": "kLINEAR"}]}]}


@pytest.mark.parametrize("report", [REPORT_10, REPORT_11])
def test_engine_is_inspected_where_there_is_a_gpu(install: Any, monkeypatch: pytest.MonkeyPatch, report: Any) -> None:
    install(layers=fake.HALF_LAYERS, inspector=report)
    monkeypatch.setattr(builder_module, "find_gpu", lambda: H100)
    assert build(precision="fp16").inspected


def test_engine_that_lost_its_precision_is_refused(install: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    install(layers=fake.HALF_LAYERS, inspector=REPORT_FLOAT)
    monkeypatch.setattr(builder_module, "find_gpu", lambda: H100)
    with pytest.raises(BackendError, match="the built engine has float, expected some fp16"):
        build(precision="fp16")


@pytest.mark.parametrize("report", [{}, {"Layers": ["c", "d"]}, {"Layers": [{"Name": "c"}]}])
def test_engine_whose_report_has_no_types_is_not_called_inspected(
    install: Any, monkeypatch: pytest.MonkeyPatch, report: Any
) -> None:
    install(layers=fake.HALF_LAYERS, inspector=report)
    monkeypatch.setattr(builder_module, "find_gpu", lambda: H100)
    assert not build(precision="fp16").inspected


def test_engine_is_not_called_inspected_without_a_gpu(install: Any) -> None:
    install(layers=fake.HALF_LAYERS)
    assert not build(precision="fp16").inspected


# -- timing cache -----------------------------------------------------------------------------------------------------


def test_timings_grow_from_build_to_build(install: Any, tmp_path: Path) -> None:
    module = install()
    timing = TimingFile(tmp_path, "tensorrt", "11.4.0", "H100", "580")
    build(timing=timing)
    assert module.told["timing"] == b""
    build(timing=timing)
    assert module.told["timing"] == b"+timed"
    assert module.told["ignore_mismatch"] is False
    assert timing.read() == b"+timed+timed"


@pytest.mark.parametrize("other", [("tensorrt", "11.5.0", "H100", "580"), ("tensorrt", "11.4.0", "A100", "580")])
def test_timings_of_another_version_or_device_are_not_read(tmp_path: Path, other: tuple[str, ...]) -> None:
    mine, its = TimingFile(tmp_path, "tensorrt", "11.4.0", "H100", "580"), TimingFile(tmp_path, *other)
    mine.write(b"timings")
    assert its.read() == b""
    mine.path.rename(its.path)
    assert its.read() == b""


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b"", lambda data: data[:5]]
)
def test_damaged_timings_are_not_read(tmp_path: Path, damage: Any) -> None:
    timing = TimingFile(tmp_path, "tensorrt", "11.4.0", "H100", None)
    timing.write(b"timings")
    timing.path.write_bytes(damage(timing.path.read_bytes()))
    assert timing.read() == b""


@pytest.mark.parametrize(("wanted", "files"), [(None, 1), (True, 1), (False, 0)])
def test_timing_cache_is_used_unless_it_is_switched_off(
    install: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: bool | None, files: int
) -> None:
    install()
    monkeypatch.setattr(fake.Network, "inputs", fake.inputs_of(read_bundle(default_bundle())))
    adapter, bundle, cache = open_adapter("tensorrt"), read_bundle(default_bundle()), EngineCache(tmp_path)
    file = bundle.file("denoiser", "fp32")
    key = engine_key(adapter, bundle, file, BuildSettings(timing_cache=wanted), H100)
    assert key.device == "NVIDIA H100, compute capability 9.0"
    assert key.driver == "580.65.06"
    make_builder(adapter, bundle, file, key, cache)()
    assert len(list(tmp_path.glob("timing.*.cache"))) == files


# -- the driver's library ---------------------------------------------------------------------------------------------


class FakeCuda:
    """Answers as libcuda does."""

    def __init__(self, failing: str | None = None) -> None:
        self.failing = failing

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> int:
            if name == "cuDeviceGetName":
                ctypes.memmove(args[0], b"NVIDIA H100\0", 12)
            elif name == "cuDeviceGetAttribute":
                args[0]._obj.value = {75: 9, 76: 0}[args[1]]
            elif name == "cuDriverGetVersion":
                args[0]._obj.value = 13020
            elif name == "cuDeviceGetCount":
                args[0]._obj.value = 2
            elif name == "cuDeviceGet":
                args[0]._obj.value = args[1]
            elif name == "cuDeviceGetUuid":
                ctypes.memmove(args[0], bytes([args[1].value, *range(0xA1, 0xB0)]), 16)
            return int(name == self.failing)

        return call


def test_gpu_is_found_through_the_drivers_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    version = tmp_path / "version"
    monkeypatch.setattr("ddpm_deploy.backends.cuda.gpus.DRIVER_FILE", version)
    assert query(FakeCuda()) == Gpu("NVIDIA H100", "9.0", "CUDA 13.2")
    version.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\nGCC version:\n"
    )
    assert query(FakeCuda()) == Gpu("NVIDIA H100", "9.0", "580.65.06")


@pytest.mark.parametrize("failing", ["cuInit", "cuDeviceGet", "cuDriverGetVersion"])
def test_driver_that_fails_is_no_gpu(failing: str) -> None:
    assert query(FakeCuda(failing)) is None


def test_gpus_are_told_apart_as_nvidia_smi_does() -> None:
    rest = "a1a2a3-a4a5-a6a7-a8a9-aaabacadaeaf"
    assert query_uuids(FakeCuda()) == (f"GPU-00{rest}", f"GPU-01{rest}")


@pytest.mark.parametrize(
    ("failing", "found"),
    [("cuInit", ()), ("cuDeviceGetCount", ()), ("cuDeviceGet", ("", "")), ("cuDeviceGetUuid", ("", ""))],
)
def test_driver_that_fails_names_no_gpu(failing: str, found: tuple[str, ...]) -> None:
    assert query_uuids(FakeCuda(failing)) == found
