"""The shapes model inside the package: small, and it draws what it is asked for, also what it never saw."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ddpm_deploy import Sampler
from ddpm_deploy.bundle import PACKAGED, default_bundle, read_bundle
from ddpm_deploy.errors import BundleError
from ddpm_deploy.parity.__main__ import main as parity
from ddpm_deploy.sample import main
from ddpm_deploy.shapes.caption import captions
from ddpm_deploy.shapes.judge import SceneJudge
from ddpm_deploy.shapes.render import render
from ddpm_deploy.shapes.scene import HELD_OUT, draw_scenes
from ddpm_deploy.train.captioned import CaptionedShapes

MAX_BYTES = 10 * 2**20
NUM = 100  # `make shapes` counts 500 of each kind
PROMPT_SEED = 7


@pytest.fixture(scope="module")
def sampler() -> Iterator[Sampler]:
    with Sampler.load("shapes", threads=2) as opened:
        yield opened


@pytest.fixture(scope="module")
def judge() -> SceneJudge:
    return SceneJudge()


def test_it_is_small_and_says_where_it_comes_from(sampler: Sampler) -> None:
    bundle = read_bundle(default_bundle("shapes"))
    assert sum(file.size_bytes for file in bundle.manifest.all_files) <= MAX_BYTES
    assert bundle.manifest.model.licence == "Apache-2.0"
    assert bundle.manifest.model.provenance["data"] == "shapes"
    assert bundle.manifest.tokenizer == CaptionedShapes(1).tokenizer
    assert bundle.manifest.guided


def test_a_name_is_a_bundle_only_where_there_is_no_such_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_bundle("shapes").root == default_bundle("shapes")
    with pytest.raises(ValueError, match=f"bundle: got 'cats', expected one of {', '.join(PACKAGED)}"):
        default_bundle("cats")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").symlink_to(default_bundle("digits"))
    assert read_bundle("shapes").manifest.model.name == "digits"


def test_a_model_that_is_not_there_says_how_to_train_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ddpm_deploy.bundle.read.ASSETS", tmp_path)
    with pytest.raises(BundleError, match=r"shapes: got no such folder, .*examples/shapes_demo\.py --install"):
        read_bundle("shapes")


def test_the_judge_knows_rendered_pictures_and_is_not_pleased_by_others(judge: SceneJudge) -> None:
    assert judge.real.whole >= 0.99
    scenes, others = (draw_scenes(PROMPT_SEED, np.arange(500) + shift, "all") for shift in (0, 500))
    assert judge.judge(render(others), scenes).whole < 0.05
    assert judge.judge(np.zeros((500, 3, 32, 32), np.float32), scenes).attributes < 0.5


@pytest.mark.parametrize(("split", "attributes"), [("training", 0.9), ("held-out", 0.75)])
def test_it_draws_what_it_is_asked_for(sampler: Sampler, judge: SceneJudge, split: str, attributes: float) -> None:
    scenes = draw_scenes(PROMPT_SEED, np.arange(NUM), split)
    texts = captions(scenes, PROMPT_SEED, np.arange(NUM))
    verdict = judge.judge(sampler.sample(NUM, prompt=texts, guidance=4.0, batch_size=50), scenes)
    assert verdict.attributes >= attributes


def test_its_training_never_showed_what_is_held_out() -> None:
    data = CaptionedShapes()
    texts = [data.tokenizer.decode(row) for row in data.__getitems__(list(range(2000)))[1]["tokens"].numpy()]
    assert not any(f"{colour} {kind}" in text for text in texts for colour, kind in HELD_OUT)
    assert any("red circle" in text for text in texts)


def test_the_recorded_reference_is_met(capsys: pytest.CaptureFixture[str]) -> None:
    assert parity(["shapes", "--against", "reference", "--backends", "onnxruntime", "--threads", "1"]) == 0
    assert "within budget" in capsys.readouterr().out


def test_the_command_draws_a_prompt_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom ddpm_deploy.sample import main\n"
        "code = main(['shapes', '--prompt', 'a green triangle above a red square', '--guidance', '4', '--num', '4', "
        f"'--out', {str(tmp_path / 'x.png')!r}])\n"
        "assert not {'torch', 'onnx'} & set(sys.modules)\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "4 samples, unipc with 12 evaluations" in done.stdout


def test_words_that_the_model_was_not_taught_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["shapes", "--num", "1", "--steps", "1", "--out", "cat.png"]
    assert main([*words, "--prompt", "a red circle"]) == 0
    assert not caplog.messages
    assert main([*words, "--prompt", "a red cat"]) == 0
    assert caplog.messages == ["--prompt: the model was not taught 'cat', and is likely to draw something else"]
