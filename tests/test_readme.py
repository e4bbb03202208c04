"""What the README tells to type works, word for word; only sizes are cut down by flags added at the end."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm_deploy.bundle import default_bundle
from ddpm_deploy.cli import COMMANDS
from ddpm_deploy.cli import main as ddpm_deploy

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
SMALLER = {
    "train": "--steps 2 --batch-size 2 --network tiny.json --sample-every 0 --cpu --quiet --no-tensorboard",
    "export": "--parity-timesteps 3 --graph denoiser --precision fp32",
    "build": "--batch 1 --role denoiser --precision fp32",
    "parity": "--steps 3",
    "sample": "--steps 2",
    "sample --shards": "--num 40 --shard-size 16 --steps 2",
    "tune": "--batches 1 --seconds 0.01",
    "tune --plan": "--nfe 2 --samples 2",
    "evaluate": "--bound none --num 20 --solvers ddim --spacings trailing --nfes 2",
    "doctor": "",
}
ELSEWHERE = {"bench", "serve"}  # one works on reports, which take minutes to make, one runs for ever; tested elsewhere
TINY = {
    "kind": "unet",
    "config": {"in_channels": 3, "block_out_channels": [8, 8], "layers_per_block": 1, "norm_groups": 4},
}

RECIPE = """
[source]
schedule = { kind = "linear", T = 1000 }
prediction = "eps"
t_name = "t"
output = { scale = 8.0, offset = 8.0, units = "ink, 0 to 16" }
"""


def commands() -> list[list[str]]:
    """Every `python -m ddpm_deploy.NAME ...` of the README, in order."""
    lines = [line for language, text in BLOCKS if language == "bash" for line in text.splitlines()]
    found = [re.match(r"python -m ddpm_deploy\.(\w+)(.*)", line) for line in lines]
    return [[match[1], *shlex.split(match[2], comments=True)] for match in found if match]


def write_diffusers_folder(path: Path) -> None:
    """A small UNet2DModel with random weights, as a pipeline."""
    diffusers = pytest.importorskip("diffusers", reason="writes the folder that is exported")
    network = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
    )
    diffusers.DDPMPipeline(network, diffusers.DDPMScheduler(num_train_timesteps=20)).save_pretrained(path)


def test_every_command_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 255, (70, 90, 3), np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    shutil.copy(default_bundle() / "denoiser.fp32.onnx", "model.onnx")
    shutil.copytree(default_bundle(), "BUNDLE")
    shutil.copytree(default_bundle(), Path("runs/demo/bundle"))
    (tmp_path / "mine.toml").write_text(RECIPE)
    write_diffusers_folder(tmp_path / "ddpm-cifar10-32")
    monkeypatch.setenv("DDPM_DEPLOY_CACHE", str(tmp_path / "cache"))
    typed = commands()
    assert {command[0] for command in typed} == COMMANDS.keys() - ELSEWHERE
    if importlib.util.find_spec("tensorrt_rtx") is None:
        typed = [command for command in typed if command[0] != "build"]
    for command in typed:
        key = next((key for key in SMALLER if " " in key and set(key.split()) <= set(command)), command[0])
        assert ddpm_deploy([*command, *SMALLER[key].split()]) == 0, command
    assert Image.open("digits.png").size > (100, 100)
    assert Image.open("photos.gif").n_frames == 2


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(default_bundle(), tmp_path / "runs" / "demo" / "bundle")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for language, text in BLOCKS:
        if language == "python":
            exec(text, names)
    assert names["samples"].shape == names["values"].shape == (16, 1, 8, 8)
    assert -0.6 < names["values"].min() < names["values"].max() < 1.6


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"make (\w+)", " ".join(re.findall(r"`[^`]*`", README)) + README))
    assert {"demo", "test", "lint", "bench"} <= targets
    for target in targets - {"and"}:
        assert f"\n{target}:" in makefile, target
