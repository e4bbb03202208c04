"""The page that `export --target web` writes draws in Chromium what Python draws."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from web_browser import chromium, file_server, give_up, visit

pytest.importorskip("onnx", reason="the exporter needs it")

from ddpm_deploy import Sampler
from ddpm_deploy.bundle import Condition, default_bundle, read_bundle
from ddpm_deploy.cli import main as ddpm_deploy
from ddpm_deploy.errors import BundleError, ExportError
from ddpm_deploy.export.onnxruntime_web import FILES, INTEGRITY, runtime_files
from ddpm_deploy.export.web import write_page
from ddpm_deploy.export.web_model import describe, plans_json
from ddpm_deploy.images import to_uint8
from ddpm_deploy.noise import INITIAL, STEP, _philox, normal
from ddpm_deploy.plan.feeds import plan_tables

TOLERANCE = 1e-4
MODELS = ("digits", "shapes")
LARGEST = 2**64 - 1
STREAMS = [(0, 0, 0, INITIAL, 7), (7, 3, 999, STEP, 64), (LARGEST, LARGEST, LARGEST, STEP, 9), (2**40 + 1, 1, 0, 0, 1)]
TEXTS = (
    "",
    "A red  circle\tabove the BLUE square ",
    "a zebra crossing",
    "Straße, naïve ﬁ",
    "\u1680green\x1fcross\u3000",
    "日本 a İx",
)
FAKE = dict.fromkeys((*FILES, "onnxruntime-web.LICENCE.txt"), b"-")


@pytest.fixture(scope="module")
def runtime() -> dict[str, bytes]:
    if shutil.which("npm") is None:
        give_up("npm, which fetches onnxruntime-web, was not found")
    try:
        return runtime_files()
    except ExportError as error:
        give_up(str(error))


@pytest.fixture(scope="module")
def folders(runtime: Mapping[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pages")
    return {name: write_page(read_bundle(name), root / name, runtime=runtime) for name in MODELS}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(browser: Any, folders: Mapping[str, Path]) -> Iterator[dict[str, Any]]:
    """Each model's page, ready to draw."""
    with (
        file_server(folders["digits"]) as one,
        file_server(folders["shapes"]) as two,
        visit(browser, one) as digits,
        visit(browser, two) as shapes,
    ):
        for page in (digits, shapes):
            page.wait_for_selector("#status.ready")
        yield {"digits": digits, "shapes": shapes}


def request(**given: Any) -> dict[str, Any]:
    return {"n": 1, "solver": "unipc", "steps": 12, "seed": 0, "guidance": 1, "labels": [], "prompt": "", **given}


def drawn(page: Any, index: int, **given: Any) -> np.ndarray:
    """A sample of the page's own, in network range."""
    code = "async ([asked, i]) => Array.from(await (await import('./page/artist.js')).sample(asked, i))"
    return np.array(page.evaluate(code, [request(**given), index]), np.float32)


# -- noise, words, plans ----------------------------------------------------------------------------------------------


def test_the_noise_is_numpy_s_integer_for_integer(pages: Mapping[str, Any]) -> None:
    code = """async (streams) => (await import('./page/noise.js').then(({ words }) =>
        streams.map((given) => Array.from(words(...given.map(BigInt).slice(0, 4), Number(given[4])), String))))"""
    got = pages["digits"].evaluate(code, [[str(each) for each in stream] for stream in STREAMS])
    for words, (*stream, count) in zip(got, STREAMS, strict=True):
        assert [int(word) for word in words] == _philox(*stream).random_raw(count).tolist()


def test_its_normal_numbers_are_those_of_python_to_the_last_bit_but_one(pages: Mapping[str, Any]) -> None:
    code = "async () => Array.from((await import('./page/noise.js')).normal(7, 3, 2, 1, 9999))"
    got = np.array(pages["digits"].evaluate(code), np.float32)
    np.testing.assert_array_max_ulp(got, normal(7, 3, 2, 1, 9999), 1)


def test_the_tokens_of_a_text_are_those_of_python(pages: Mapping[str, Any]) -> None:
    tokenizer = read_bundle("shapes").manifest.tokenizer
    assert tokenizer is not None
    code = """async ([texts, known]) =>
        (await import('./page/tokenizer.js').then(({ encode }) => texts.map((text) => encode(text, known))))"""
    got = pages["shapes"].evaluate(code, [list(TEXTS), tokenizer.to_dict()])
    assert got == tokenizer.encode(TEXTS).tolist()


def test_plans_come_without_loss() -> None:
    manifest = read_bundle("digits").manifest
    with Sampler.load("digits", threads=1) as sampler:
        for solver, steps in describe(manifest, (1, 4, 12), 1)["solvers"].items():
            plans = json.loads(plans_json(manifest, solver, steps))
            assert list(plans) == [str(count) for count in steps]
            for count in steps:
                for name, table in plan_tables(sampler.plan(solver, count)).items():
                    assert np.array_equal(np.array(plans[str(count)][name], np.float32), table.ravel()), (solver, name)


def test_the_plan_of_the_default_steps_is_the_model_s_own() -> None:
    manifest = read_bundle("digits").manifest
    tuned = replace(manifest, defaults=replace(manifest.defaults, steps=2, timesteps=(950.0, 101.5)))
    plans = json.loads(plans_json(tuned, "unipc", (2, 4)))
    assert plans["2"]["t"] == [950, 101.5]
    assert plans["4"]["t"][0] == 999


# -- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "steps", "label", "guidance"),
    [("unipc", 12, "3", 1), ("unipc", 8, "4", 2.5), ("ddpm", 20, None, 1), ("heun", 4, "9", 0), ("ipndm", 10, "1", 4)],
)
def test_a_digit_is_python_s(
    pages: Mapping[str, Any], solver: str, steps: int, label: str | None, guidance: float
) -> None:
    labels = [] if label is None else [label]
    got = drawn(pages["digits"], 2, solver=solver, steps=steps, seed=2**53 - 1, labels=labels, guidance=guidance)
    condition = {"labels": [int(label)]} if label else None
    with Sampler.load("digits", threads=1) as sampler:
        (expected,) = sampler.sample(
            1, solver=solver, steps=steps, seed=2**53 - 1, start=2, condition=condition, guidance=guidance
        )
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(got, expected.ravel(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("prompt", "guidance"), [("a green triangle above a red square", 4), ("a zebra", 1.5), ("", 1)]
)
def test_a_prompt_is_drawn_as_python_draws_it(pages: Mapping[str, Any], prompt: str, guidance: float) -> None:
    got = drawn(pages["shapes"], 1, steps=4, seed=5, prompt=prompt, guidance=guidance)
    with Sampler.load("shapes", threads=1) as sampler:
        (expected,) = sampler.sample(
            1, solver="unipc", steps=4, seed=5, start=1, prompt=prompt or None, guidance=guidance
        )
    np.testing.assert_allclose(got, expected.ravel(), rtol=0, atol=TOLERANCE)


def test_somebody_draws_saves_and_copies(
    browser: Any, folders: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with file_server(folders["digits"]) as url, visit(browser, url, permissions=["clipboard-write"]) as page:
        page.wait_for_selector("#status.ready")
        page.get_by_label("3", exact=True).check(force=True)
        page.get_by_label("1", exact=True).check(force=True)
        page.get_by_role("spinbutton", name="Pictures").fill("3")
        page.get_by_label("Seed").fill("21")
        page.get_by_role("button", name="Draw").click()
        page.get_by_role("button", name="Copy as Python").wait_for()
        links = page.locator("#gallery a")
        assert [link.get_attribute("aria-label") for link in links.all()] == [
            f"Save picture {i + 1}: {label}" for i, label in enumerate("131")
        ]
        saved = []
        for link in links.all():
            with page.expect_download() as download:
                link.click()
            saved.append(np.asarray(Image.open(download.value.path()))[..., 0])
        page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
        page.get_by_role("button", name="Copy as Python").click()
        program = page.evaluate("window.copied")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "program.py").write_text(program)
    runpy.run_path("program.py")
    for i, pixels in enumerate(saved):
        expected = np.asarray(Image.open(f"picture-{i}.png"))
        assert pixels.shape == expected.shape == (8, 8)
        assert np.abs(pixels.astype(int) - expected).max() <= 1
        assert pixels.std() > 50


def test_threads_are_used_where_headers_allow_them(browser: Any, folders: Mapping[str, Path]) -> None:
    headers = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
    with file_server(folders["digits"], headers) as url, visit(browser, url) as page:
        page.wait_for_selector("#status.ready")
        assert page.evaluate("crossOriginIsolated")
        assert len(page.workers) > 1
        got = drawn(page, 0, steps=4, labels=["7"])
    with Sampler.load("digits", threads=1) as sampler:
        (expected,) = sampler.sample(1, solver="unipc", steps=4, condition={"labels": [7]})
    np.testing.assert_allclose(got, expected.ravel(), rtol=0, atol=TOLERANCE)


def test_stopping_is_at_once_and_it_draws_again_after(pages: Mapping[str, Any]) -> None:
    page = pages["digits"]
    page.locator("#solver").select_option("ddpm")
    page.locator("#steps").press("End")
    assert page.locator("#steps-value").inner_text() == "1000"
    page.get_by_role("button", name="Draw").click()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped.").wait_for()
    page.locator("#solver").select_option("unipc")
    page.locator("#steps").press("Home")
    page.get_by_role("button", name="Draw").click()
    page.locator("#gallery li").first.wait_for()
    assert "1 steps" in page.locator("#gallery .caption").first.inner_text()


def test_levels_are_rounded_as_python_rounds_them(pages: Mapping[str, Any]) -> None:
    values = np.concatenate([np.linspace(-1.2, 1.2, 4001), (np.arange(256) - 127) / 127.5]).astype(np.float32)
    code = """async (values) => Array.from(
        (await import('./page/pixels.js')).levels(new Float32Array(values), [-1, 1]))"""
    assert pages["digits"].evaluate(code, values.tolist()) == to_uint8(values).tolist()


# -- writing ----------------------------------------------------------------------------------------------------------


def test_a_page_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    bundle, page = read_bundle(default_bundle()), tmp_path / "page"
    write_page(bundle, page, steps=(1,), runtime=FAKE)
    (page / "page" / "old.js").touch()
    write_page(bundle, page, steps=(1,), runtime=FAKE)
    assert not (page / "page" / "old.js").exists()
    (page / "thesis.tex").touch()
    with pytest.raises(ExportError, match=r"holds 'thesis\.tex', which is not of this package"):
        write_page(bundle, page, steps=(1,), runtime=FAKE)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ExportError, match="was not written by this package"):
        write_page(bundle, tmp_path, steps=(1,), runtime=FAKE)


def test_a_page_needs_pictures_and_conditions_that_a_visitor_can_give(tmp_path: Path) -> None:
    bundle = read_bundle(default_bundle())
    flat = replace(bundle, manifest=replace(bundle.manifest, sample_shape=(8, 8)))
    with pytest.raises(ExportError, match="are no pictures"):
        write_page(flat, tmp_path / "page", steps=(1,), runtime=FAKE)
    pose = replace(bundle.manifest, conditions=(Condition("pose", (3,), "float32"),))
    with pytest.raises(ExportError, match="pose has to be given"):
        write_page(replace(bundle, manifest=pose), tmp_path / "page", steps=(1,), runtime=FAKE)


def test_a_damaged_sampler_is_not_replaced_by_another_in_silence(tmp_path: Path) -> None:
    copy = shutil.copytree(default_bundle(), tmp_path / "bundle")
    (file,) = copy.glob("sampler.*.onnx")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(BundleError, match=file.name):
        write_page(read_bundle(copy, verify=False), tmp_path / "page", steps=(1,), runtime=FAKE)


def test_the_command_writes_a_page_of_a_bundle(
    tmp_path: Path, runtime: Mapping[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "onnxruntime-web"
    (package / "dist").mkdir(parents=True)
    (package / "package.json").write_text('{"name": "onnxruntime-web", "version": "9.9"}')
    for name in FILES:
        (package / "dist" / name).write_bytes(runtime[name])
    out = tmp_path / "page"
    command = ["export", "digits", "--target", "web", "--out", str(out), "--onnxruntime-web", str(package)]
    assert ddpm_deploy(command) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"page: {out}",
        f"look at it: python -m http.server --bind 127.0.0.1 --directory {out}",
    ]
    assert "onnxruntime-web 9.9, unchanged" in (out / "page" / "onnxruntime-web.LICENCE.txt").read_text()
    assert (out / "page" / FILES[1]).read_bytes() == runtime[FILES[1]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target", "onnxruntime-cpu", "--out", "p"], "digits is a bundle, of which only --target web can be made"),
        (["--target", "web", "--out", "p", "--opset", "20"], "--opset: of no use with a bundle"),
        (["--target", "web"], "--out: got none, expected the folder of the page"),
        (["--target", "web", "--out", "p", "--onnxruntime-web", "nowhere"], "nowhere/package.json: cannot be read"),
        (["--target", "web", "--out", "p", "--onnxruntime-web", "other.tgz"], f"expected {INTEGRITY}"),
        (["--target", "web", "--out", "p"], "npm was not found, which fetches it; install Node.js, or give a copy"),
    ],
)
def test_the_command_says_what_is_wrong(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    Path("other.tgz").write_bytes(b"another package")
    assert ddpm_deploy(["export", "digits", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not Path("p").exists()
