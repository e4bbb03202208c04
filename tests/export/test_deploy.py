"""What an export writes beside the bundle where a target asks for it: engines, a Triton model repository."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ddpm_deploy.backends.tensorrt import Adapter, open_adapter
from ddpm_deploy.bundle import Bundle, read_bundle
from ddpm_deploy.errors import BackendUnavailable
from ddpm_deploy.export import Options
from ddpm_deploy.export.deploy import Places, deploy


@pytest.fixture
def bundle(exported: Path) -> Bundle:
    return read_bundle(exported)


def named(bundle: Bundle, name: str) -> Bundle:
    return replace(bundle, manifest=replace(bundle.manifest, model=replace(bundle.manifest.model, name=name)))


@pytest.mark.parametrize(
    ("name", "folder"), [("labelled", "labelled"), ("Zähler / 2", "Z_hler_2"), ("n" * 300, "n" * 100)]
)
def test_any_name_of_a_model_gives_a_name_that_triton_takes(
    bundle: Bundle, tmp_path: Path, name: str, folder: str
) -> None:
    line, *_ = deploy(named(bundle, name), Options(targets=("triton",)), Places.beside(tmp_path / "bundle"))
    model = tmp_path / "bundle.triton" / f"{folder}_denoiser_fp32"
    assert line == f"Triton model: {model}"
    assert (model / "1" / "model.onnx").read_bytes() == (bundle.root / "denoiser.fp32.onnx").read_bytes()


def test_a_page_is_written_beside_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    places = replace(Places.beside(tmp_path / "bundle"), web_runtime={"runtime.wasm": b"-"})
    lines = list(deploy(bundle, Options(targets=("web",)), places))
    page = tmp_path / "bundle.web"
    assert lines == [
        f"page: {page}",
        f"look at it: python -m http.server --bind 127.0.0.1 --directory {page}",
    ]
    assert {"index.html", "page/sampler.onnx", "page/plan.ddpm.json", "page/runtime.wasm"} <= {
        str(path.relative_to(page)) for path in page.rglob("*")
    }


def test_tensorrt_that_finds_no_gpu_is_a_note_and_no_error(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddpm_deploy.build.open_adapter", lambda name: Adapter(name, "11.0", None))
    monkeypatch.setattr("ddpm_deploy.build.find_gpu", lambda: None)
    why, how = deploy(bundle, Options(targets=("tensorrt",)), Places.beside(tmp_path))
    assert why.startswith("no engines were built: tensorrt 11.0: needs an NVIDIA GPU")
    assert "--target tensorrt-rtx" in why
    assert how == "on the target machine: python -m ddpm_deploy.build BUNDLE --target tensorrt"


def test_engines_are_built_into_the_cache_once(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        open_adapter("tensorrt-rtx")
    except BackendUnavailable as error:
        pytest.skip(str(error))
    monkeypatch.setenv("DDPM_DEPLOY_CACHE", str(tmp_path))
    options = Options(targets=("tensorrt-rtx",), batches=(1, 2))
    lines = [next(deploy(bundle, options, Places.beside(tmp_path))) for _ in range(2)]
    assert [line.split(": ")[1].split(",")[0] for line in lines] == ["built", "hit"]
    assert lines[0].startswith("tensorrt-rtx engine denoiser fp32: ")
    assert Path(lines[0].rpartition(", ")[2]).is_relative_to(tmp_path)
