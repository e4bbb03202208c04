"""`ddpm-deploy build`: engines into a cache, a hit the second time, a miss explained, one line for what goes wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_tensorrt as fake
import pytest

from ddpm_deploy import build
from ddpm_deploy.backends.tensorrt import Adapter, Gpu
from ddpm_deploy.bundle import Bundle, default_bundle, read_bundle
from ddpm_deploy.cli import main as ddpm_deploy
from ddpm_deploy.errors import BundleError

DIGITS = str(default_bundle())
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command with a cache of its own: (exit code, output, errors)."""

    def run(*arguments: str, cache: Path | None = None) -> tuple[int, str, str]:
        code = build.main([*arguments, "--cache", str(cache or tmp_path / "cache")])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Puts a stand-in for the full package, and a GPU or none, into this machine."""

    def install(gpu: Gpu | None, **options: Any) -> Any:
        module = fake.make_module("10.9.0", gpu=gpu is not None, **options)
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        monkeypatch.setattr(fake.Network, "inputs", fake.inputs_of(read_bundle(DIGITS)))
        monkeypatch.setattr(build, "find_gpu", lambda: gpu)
        monkeypatch.setattr("ddpm_deploy.backends.tensorrt.builder.find_gpu", lambda: None)
        return module

    return install


H100 = Gpu("NVIDIA H100", "9.0", "580.65.06")
RTX = ("--target", "tensorrt-rtx")


def test_engine_is_built_once_and_then_found(rtx: Adapter, run: Run, tmp_path: Path) -> None:
    code, out, err = run(DIGITS, *RTX, "--quiet")
    assert (code, err) == (0, "")
    assert out.startswith("denoiser  fp32  built  ")
    assert re.search(r"layers verified: convolution \d+ fp32; matrix multiply \d+ fp32", out)
    code, out, _ = run(DIGITS, *RTX, "--quiet")
    assert (code, out.split()[:3]) == (0, ["denoiser", "fp32", "hit"])
    assert len(list((tmp_path / "cache").glob("*.engine"))) == 1


def test_dry_run_says_hit_or_why_not_and_builds_nothing(rtx: Adapter, run: Run, tmp_path: Path) -> None:
    code, out, _ = run(DIGITS, *RTX, "--dry-run")
    assert (code, out.split()[2]) == (0, "miss")
    assert "holds none" in out
    assert not (tmp_path / "cache").exists()
    run(DIGITS, *RTX, "--quiet")
    assert run(DIGITS, *RTX, "--dry-run")[1].split()[2] == "hit"
    _, out, _ = run(DIGITS, *RTX, "--dry-run", "--batch", "1,4", "--compute-capability", "8.9")
    assert out.strip().endswith("the nearest one differs in: batch 1 -> 1,4, compute capabilities none -> 8.9")


def test_json_holds_the_sidecar(rtx: Adapter, run: Run, tmp_path: Path) -> None:
    code, out, _ = run(DIGITS, *RTX, "--json", "--quiet")
    report = json.loads(out)
    (engine,) = report["engines"]
    assert (code, report["cache"]) == (0, str(tmp_path / "cache"))
    assert (engine["state"], engine["key"]["runtime"], engine["settings"]["batches"]) == ("built", "tensorrt-rtx", [1])
    assert Path(engine["path"]).stat().st_size == engine["engine"]["size_bytes"]
    assert engine["key"]["bundle_digest"] == read_bundle(DIGITS).digest


def test_progress_is_shown_on_stderr_only(rtx: Adapter, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ddpm_deploy.build", DIGITS, *RTX, "--cache", str(tmp_path / "c"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout)["engines"][0]["state"] == "built"
    assert done.stderr == ""  # no terminal, no bar


def test_command_needs_neither_torch_nor_onnx(rtx: Adapter, tmp_path: Path) -> None:
    code = (
        "import sys; from ddpm_deploy import build; "
        f"code = build.main([{DIGITS!r}, '--target', 'tensorrt-rtx', '--cache', {str(tmp_path / 'c')!r}, '--quiet']); "
        "print(code, *sorted({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "0"


def test_list_shows_what_is_there(rtx: Adapter, run: Run, tmp_path: Path) -> None:
    assert run("--list") == (0, f"{tmp_path / 'cache'}: 0 engines\n", "")
    run(DIGITS, *RTX, "--quiet")
    code, out, _ = run("--list")
    assert code == 0
    assert ": 1 engine\n  denoiser fp32 on tensorrt-rtx " in out
    assert len(json.loads(run("--list", DIGITS, "--json")[1])["engines"]) == 1


def test_force_builds_again(rtx: Adapter, run: Run) -> None:
    run(DIGITS, *RTX, "--quiet")
    assert " built " in run(DIGITS, *RTX, "--quiet", "--force")[1]


def test_damaged_engine_is_told_of_and_built_again(rtx: Adapter, run: Run, tmp_path: Path) -> None:
    run(DIGITS, *RTX, "--quiet")
    (engine,) = (tmp_path / "cache").glob("*.engine")
    engine.write_bytes(engine.read_bytes()[:-1])
    assert "it is damaged" in run(DIGITS, *RTX, "--dry-run")[1]
    code, out, err = run(DIGITS, *RTX, "--quiet")
    assert (code, out.split()[2]) == (0, "built")
    assert "it is damaged, build it again" in err


def test_ddpm_deploy_build_is_the_same_command(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ddpm_deploy(["build", "--list", "--cache", str(tmp_path / "cache")]) == 0
    assert "0 engines" in capsys.readouterr().out


def test_the_guide_names_every_option() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "tensorrt.md").read_text(encoding="utf-8")
    options = {option for action in build.build_parser()._actions for option in action.option_strings}
    assert [option for option in options - {"-h", "--help"} if f"`{option}" not in guide] == []


def test_the_guides_example_gives_a_verified_engine(rtx: Adapter, tmp_path: Path, monkeypatch: Any) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "tensorrt.md").read_text(encoding="utf-8")
    code = guide.partition("```python\n")[2].partition("```")[0]
    monkeypatch.setenv("DDPM_DEPLOY_CACHE", str(tmp_path))
    names: dict[str, Any] = {}
    exec(code.replace('"runs/demo/bundle"', repr(DIGITS)), names)
    assert len(names["engine"]) == names["cache"].records()[0].size_bytes


# -- full TensorRT, on a stand-in -------------------------------------------------------------------------------------


def test_full_tensorrt_builds_for_the_gpu_that_is_there(full: Callable[..., Any], run: Run) -> None:
    module = full(H100)
    options = ("--hardware-compatibility", "ampere_plus", "--version-compatible", "--workspace-mib", "64", "--refit")
    code, out, err = run(DIGITS, "--batch", "1,8", "--optimization-level", "4", *options, "--json", "--quiet")
    assert (code, err) == (0, "")
    (engine,) = json.loads(out)["engines"]
    assert engine["key"]["device"] == "NVIDIA H100, compute capability 9.0"
    assert engine["key"]["driver"] == "580.65.06"
    assert (module.told["WORKSPACE"], module.told["builder_optimization_level"]) == (64 * 2**20, 4)
    assert module.told["flags"] == ["VERSION_COMPATIBLE", "REFIT"]


def test_another_gpu_is_a_miss_that_names_it(full: Callable[..., Any], run: Run) -> None:
    full(H100)
    run(DIGITS, "--quiet")
    full(replace(H100, name="NVIDIA H200", driver="590.1"))
    why = run(DIGITS, "--dry-run")[1].strip()
    assert "device NVIDIA H100, compute capability 9.0 -> NVIDIA H200, compute capability 9.0" in why
    assert why.endswith("driver 580.65.06 -> 590.1")


def test_machine_without_a_gpu_gets_one_line_that_offers_rtx(full: Callable[..., Any], run: Run) -> None:
    full(None)
    code, out, err = run(DIGITS)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "needs an NVIDIA GPU with its driver" in err
    assert "--target tensorrt-rtx" in err


def test_missing_package_gets_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    code, out, err = run(DIGITS)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "pip install tensorrt, with NVIDIA's package index as --extra-index-url" in err


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "BUNDLE: got none, expected the bundle to build engines of, or --list"),
        (["/nowhere", *RTX], "/nowhere: no such bundle"),
        ([DIGITS, *RTX, "--batch", "4,1"], "batches: got [4, 1]"),
        ([DIGITS, *RTX, "--role", "step"], "role: got 'step', but the bundle has denoiser fp32 for TensorRT"),
        ([DIGITS, *RTX, "--precision", "fp16"], "precision: got 'fp16', but the bundle has denoiser fp32"),
        ([DIGITS, *RTX, "--optimization-level", "3"], "optimization_level: tensorrt-rtx has no such setting"),
        ([DIGITS, *RTX, "--no-timing-cache"], "timing_cache: tensorrt-rtx has no such setting"),
        ([DIGITS, *RTX, "--compute-capability", "9.0"], "compute_capabilities: got '9.0', expected some of 7.5"),
        ([DIGITS, *RTX, "--digest", "sha256:" + "0" * 64], "this is not the bundle that was pinned"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(rtx: Adapter, run: Run, arguments: list[str], message: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("ddpm-deploy build: error: ")
    assert message in err


@pytest.mark.parametrize(
    "arguments", [["--batch", "one"], ["--rows", "1,2"], ["--axis", "H=8"], ["--refit", "--strip-weights"]]
)
def test_bad_option_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        build.main([DIGITS, *arguments])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_cache_inside_the_bundle_is_refused(rtx: Adapter, run: Run) -> None:
    code, _, err = run(DIGITS, *RTX, cache=Path(DIGITS) / "engines")
    assert code == 2
    assert "is inside the bundle; engines belong outside" in err


def test_workspace_that_is_too_small_is_one_line(rtx: Adapter, run: Run) -> None:
    code, _, err = run(DIGITS, *RTX, "--workspace-mib", "1", "--quiet")
    assert (code, err.count("\n")) == (2, 1)
    assert "the build failed" in err


# -- which graphs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle() -> Bundle:
    """One with graphs for TensorRT and others; nobody reads their bytes."""
    found = read_bundle(DIGITS)
    portable = found.file("denoiser", "fp32")
    made = [("denoiser", "fp16"), ("step", "fp16"), ("step", "int8")]
    files = (
        portable,
        *(replace(portable, path=f"{r}.{p}.onnx", role=r, precision=p, target="tensorrt") for r, p in made),
        replace(portable, path="o.onnx", target="openvino", precision="int8"),
    )
    return replace(found, manifest=replace(found.manifest, files=files))


@pytest.mark.parametrize(
    ("roles", "precisions", "expected"),
    [
        ((), (), ["denoiser fp16 tensorrt", "step fp16 tensorrt", "step int8 tensorrt"]),
        (("denoiser",), (), ["denoiser fp16 tensorrt", "denoiser fp32 onnx"]),
        ((), ("fp32",), ["denoiser fp32 onnx"]),
        ((), ("int8",), ["step int8 tensorrt"]),
        (("step", "denoiser"), ("fp16",), ["denoiser fp16 tensorrt", "step fp16 tensorrt"]),
    ],
)
def test_graphs_for_tensorrt_come_before_portable_ones(
    bundle: Bundle, roles: Any, precisions: Any, expected: Any
) -> None:
    found = build.graph_files(bundle, roles, precisions)
    assert [f"{file.role} {file.precision} {file.target}" for file in found] == expected


def test_graph_that_the_bundle_lacks_is_named(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="role: got 'sampler', but the bundle has denoiser fp16, step fp16"):
        build.graph_files(bundle, ("step", "sampler"), ())
