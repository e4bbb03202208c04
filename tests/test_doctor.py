from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddpm_deploy import doctor
from ddpm_deploy.backends import Availability
from ddpm_deploy.backends.probe import ANSWER, MODEL, probe
from ddpm_deploy.errors import BackendError

MISSING = Availability("openvino", False, reason="No module named 'openvino'", remedy="pip install 'x[openvino]'")


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the doctor see just these backends."""

    def set_backends(*found: Availability) -> None:
        monkeypatch.setattr(doctor, "available_backends", lambda: {entry.name: entry for entry in found})

    return set_backends


def test_probe_model_is_valid_onnx_and_its_answer_is_that_of_the_reference_evaluator() -> None:
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    model = onnx.load_from_string(MODEL)
    onnx.checker.check_model(model, full_check=True)
    (answer,) = ReferenceEvaluator(model).run(None, {"x": np.ones((1, 1, 4, 4), np.float32)})
    np.testing.assert_array_equal(answer[0, 0], ANSWER)


def test_probe_names_the_provider_that_computed() -> None:
    pytest.importorskip("onnxruntime")
    assert "CPUExecutionProvider" in probe("onnxruntime", "cpu")


def test_probe_reports_a_wrong_result(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("ddpm_deploy.backends.probe.ANSWER", ANSWER + 1)
    with pytest.raises(BackendError, match="wrong result on cpu"):
        probe("onnxruntime", "cpu")


def test_json_report_tells_versions_placement_and_exit_code_0(only: Any, capsys: pytest.CaptureFixture[str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    only(Availability("onnxruntime", True, version=onnxruntime.__version__, devices=("cpu",), precisions=("fp32",)))
    assert doctor.main(["--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    (backend,) = report["backends"]
    assert (backend["available"], backend["version"], backend["precisions"]) == (
        True,
        onnxruntime.__version__,
        ["fp32"],
    )
    assert "CPUExecutionProvider" in backend["devices"][0]["placement"]
    assert report["cpu"]["usable"] >= 1
    assert report["usable"] is True


def test_missing_backend_is_shown_with_its_remedy_and_exit_code_1(
    only: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    only(MISSING)
    assert doctor.main([]) == 1
    text = capsys.readouterr().out
    assert "✗ openvino" in text
    assert "No module named 'openvino'" in text
    assert "→ pip install 'x[openvino]'" in text
    assert "No backend is usable" in text


def test_long_name_of_a_backend_is_apart_from_what_is_said_of_it(only: Any, capsys: pytest.CaptureFixture[str]) -> None:
    only(Availability("tensorrt-rtx", False, reason="no GPU", remedy="use another"))
    doctor.main([])
    assert "tensorrt-rtx no GPU" in capsys.readouterr().out


def test_device_that_fails_is_reported_and_does_not_count(only: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    only(Availability("onnxruntime", True, version="1", devices=("NoSuchExecutionProvider",), precisions=("fp32",)))
    assert doctor.main([]) == 1
    assert "✗ NoSuchExecutionProvider" in capsys.readouterr().out


def test_every_backend_is_in_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) in (0, 1)
    text = capsys.readouterr().out
    assert all(name in text for name in ("torch", "onnxruntime", "openvino"))
    assert "NVIDIA's own index" in text
    assert "diffusers" not in text


def test_two_onnxruntimes_are_a_clash_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnxruntime", "onnxruntime_gpu"):
        info = tmp_path / f"{name}-1.31.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.31.1\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    (clash,) = doctor.clashes()
    assert clash["reason"].startswith("onnxruntime and onnxruntime-gpu are installed together")
    assert clash["remedy"] == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'ddpm-deploy[gpu]'"


def test_one_onnxruntime_is_no_clash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert doctor.clashes() == []


def test_gpu_that_a_backend_does_not_see_is_a_problem() -> None:
    backends = [
        {"name": "torch", "version": "2.13", "devices": [{"name": "cpu"}, {"name": "cuda:0"}]},
        {"name": "onnxruntime", "version": "1.32", "devices": [{"name": "cpu"}]},
        {"name": "openvino", "version": "2026.4", "devices": [{"name": "cpu"}]},
    ]
    (problem,) = doctor.idle_gpus(backends, has_nvidia_gpu=True)
    assert "onnxruntime 1.32 does not see it" in problem["reason"]
    assert "ddpm-deploy[gpu]" in problem["remedy"]
    assert doctor.idle_gpus(backends, has_nvidia_gpu=False) == []


def test_cpu_flags_are_read_as_both_architectures_write_them() -> None:
    assert doctor.cpu_flags("model name\t: X\nflags\t\t: fpu avx2 amx_bf16\n") == {"fpu", "avx2", "amx_bf16"}
    assert doctor.cpu_flags("processor\t: 0\nFeatures\t: fp asimd bf16\n") == {"fp", "asimd", "bf16"}
    assert doctor.cpu_flags("") == set()


def test_terminal_without_unicode_gets_plain_signs(only: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    only(MISSING)
    with open(tmp_path / "out", "w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert doctor.main([]) == 1
    assert "  - openvino" in (tmp_path / "out").read_text()
