"""The sampler file without this package: in Node.js and in a script that knows ONNX Runtime only.

DDPM_TEST_BACKENDS=node makes it a failure where Node.js, npm or its registry cannot be had, instead of a skip.
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from ddpm_deploy import Sampler
from ddpm_deploy.bundle import Bundle, default_bundle, read_bundle
from ddpm_deploy.export.sampler_graph import build_sampler
from ddpm_deploy.export.step import build_step
from ddpm_deploy.noise import initial_noise
from ddpm_deploy.plan.feeds import STATE_SIZE

EXAMPLES = Path(__file__).parents[2] / "examples"
SOURCES = ("package.json", "sample.mjs")
INSTALL = ("npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")


@pytest.fixture(scope="module")
def digits() -> Bundle:
    return read_bundle(default_bundle())


@pytest.fixture(scope="module")
def sampler(tmp_path_factory: pytest.TempPathFactory, digits: Bundle) -> Path:
    """The digits model as one file, its default plan baked in."""
    denoiser, path = digits.file("denoiser", "fp32"), tmp_path_factory.mktemp("digits") / "sampler.onnx"
    with Sampler.load(digits, threads=1) as whole:
        plan = whole.plan()
    model = build_sampler(
        onnx.load(digits.path(denoiser)),
        inputs=denoiser.inputs,
        sample_shape=digits.manifest.sample_shape,
        learned_variance=digits.manifest.variance == "learned",
        target="onnxruntime-cpu",
        default_plan=plan,
        nulls=digits.manifest.nulls,
    )
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, copied and installed; the packages' own install scripts are not run."""
    if missing := [name for name in ("node", "npm") if shutil.which(name) is None]:
        give_up(f"{' and '.join(missing)} not found")
    folder = tmp_path_factory.mktemp("node")
    for name in SOURCES:
        shutil.copy(EXAMPLES / "node" / name, folder)
    installed = run(INSTALL, folder, timeout_s=240)
    if installed.returncode != 0:
        give_up(f"npm install: {installed.stderr.strip()}")
    return folder


def run(command: Sequence[str], folder: Path, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout_s, check=False)


def give_up(reason: str) -> NoReturn:
    """Skip, or fail where the environment says that Node.js must be there."""
    if "node" in os.environ.get("DDPM_TEST_BACKENDS", "").split(","):
        pytest.fail(f"DDPM_TEST_BACKENDS requires node: {reason}")
    pytest.skip(f"node: {reason}")


def test_node_draws_the_sampler_s_own_picture(node: Path, sampler: Path, digits: Bundle, tmp_path: Path) -> None:
    x_T = initial_noise(0, range(3), digits.manifest.sample_shape)
    x_T.tofile(tmp_path / "x_T.f32")
    command = ["node", "sample.mjs", str(sampler), str(tmp_path / "samples.f32"), str(tmp_path / "x_T.f32")]
    done = run(command, node)
    assert done.returncode == 0, done.stderr
    got = np.fromfile(tmp_path / "samples.f32", np.float32).reshape(x_T.shape)
    with Sampler.load(digits, threads=1) as whole:
        expected = whole.sample(3, seed=0, condition={"labels": np.arange(3)})
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


def test_node_draws_its_own_noise_where_none_is_given(node: Path, sampler: Path, tmp_path: Path) -> None:
    done = run(["node", "sample.mjs", str(sampler), str(tmp_path / "samples.f32")], node)
    assert done.stdout == f"wrote 10 x 1 x 8 x 8 samples to {tmp_path / 'samples.f32'}\n"
    samples = np.fromfile(tmp_path / "samples.f32", np.float32).reshape(10, 64)
    assert np.abs(samples).max() < 2
    assert np.unique(samples, axis=0).shape == (10, 64)


def test_a_script_that_knows_onnx_runtime_only_draws_ten_digits(sampler: Path, tmp_path: Path) -> None:
    runpy.run_path(str(EXAMPLES / "onnxruntime_only.py"))["main"](str(sampler), str(tmp_path / "digits.png"))
    pixels = np.asarray(Image.open(tmp_path / "digits.png"))
    assert pixels.shape == (64, 640)
    assert pixels.std() > 50


# -- the code of docs/graphs.md ---------------------------------------------------------------------------------------


def blocks(language: str) -> list[str]:
    text = (EXAMPLES.parent / "docs" / "graphs.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def test_the_python_of_the_guide_runs(sampler: Path, digits: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sampler.parent)
    stepping, drawing, another = blocks("python")
    names: dict[str, Any] = {}
    exec(drawing + another, names)
    with Sampler.load(digits, threads=1) as whole:
        condition = {"labels": names["labels"]}
        expected = whole.sample(x_T=names["x_T"], plan=names["plan"], condition=condition, guidance=2.0)
    np.testing.assert_allclose(names["samples"], expected, rtol=0, atol=1e-4)
    denoiser = digits.file("denoiser", "fp32")
    step = build_step(
        onnx.load(digits.path(denoiser)),
        inputs=denoiser.inputs,
        sample_shape=digits.manifest.sample_shape,
        state_size=STATE_SIZE,
        learned_variance=False,
        target="onnxruntime-cuda",
        nulls=digits.manifest.nulls,
    )
    names["session"] = onnxruntime.InferenceSession(step.SerializeToString(), providers=["CPUExecutionProvider"])
    exec(stepping, names)
    np.testing.assert_allclose(names["samples"], expected, rtol=0, atol=1e-4)


def test_the_javascript_of_the_guide_runs(node: Path, sampler: Path) -> None:
    (code,) = blocks("js")
    (node / "guide.mjs").write_text(code)
    shutil.copy(sampler, node / "sampler.onnx")
    done = run(["node", "guide.mjs"], node)
    assert done.stdout.startswith("[ 1, 1, 8, 8 ] Float32Array(64)"), done.stderr
