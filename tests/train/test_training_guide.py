"""docs/training.md says what is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from train_toys import OwnModule, ring

from ddpm_deploy.train.__main__ import build_parser
from ddpm_deploy.train.presets import PRESETS

GUIDE = (Path(__file__).parents[2] / "docs" / "training.md").read_text()


def test_the_guides_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    captions, code = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    own: dict[str, object] = {}
    exec(captions.replace("batch_size=2", "batch_size=2, tensorboard=False"), own)
    assert own["run"].tokenizer == own["tokenizer"]  # type: ignore[attr-defined]
    quick = code.replace("steps=20_000, batch_size=256", "steps=2, batch_size=4, tensorboard=False")
    assert quick != code
    names: dict[str, object] = {"MyNetwork": OwnModule, "my_samples": ring()}
    exec(quick.replace("progress=True", "progress=False, cpu=True"), names)
    assert names["run"].step == 2  # type: ignore[attr-defined]


def test_every_command_of_the_guide_is_accepted_by_the_parser() -> None:
    commands = re.findall(r"-m ddpm_deploy\.train (--out [^\n#`]*)", GUIDE)
    assert len(commands) >= 6
    for command in commands:
        build_parser().parse_args(command.split())


def test_the_guide_names_every_preset() -> None:
    assert set(re.findall(r"^\| `(\w+)`(?: \(default\))? \|", GUIDE, re.MULTILINE)) == set(PRESETS)
