"""`python -m ddpm_deploy.train`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from train_toys import assert_same, stored, train_points

from ddpm_deploy.model import UNet
from ddpm_deploy.train import load_run
from ddpm_deploy.train.__main__ import build_parser, main
from ddpm_deploy.train.checkpoint import list_checkpoints
from ddpm_deploy.train.config import TrainConfig
from ddpm_deploy.train.presets import PRESETS

COMMAND = [sys.executable, "-m", "ddpm_deploy.train"]
QUIET = ["--cpu", "--quiet"]
TINY = ["--preset", "tiny", *QUIET]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def test_tiny_preset_trains_and_reports_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["--out", str(out), *TINY, "--steps", "4", "--prediction", "v", "--schedule", "cosine", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["run"], report["steps"], report["complete"]) == (str(out), 4, True)
    run = load_run(out)
    assert isinstance(run.network, UNet)
    assert (run.prediction, run.schedule.T, run.sample_shape, run.step) == ("v", 1000, (1, 8, 8), 4)
    assert run.provenance["training"]["batch_size"] == PRESETS["tiny"].config.batch_size


def test_resume_continues_exactly_and_takes_more_steps(tmp_path: Path) -> None:
    for name, arguments in (
        ("whole", [*TINY, "--steps", "6"]),
        ("cut", [*TINY, "--steps", "3"]),
        ("cut", [*QUIET, "--steps", "6", "--resume"]),
    ):
        assert main(["--out", str(tmp_path / name), *arguments]) == 0
    assert_same(stored(tmp_path / "cut", 6), stored(tmp_path / "whole", 6))


def test_a_run_without_a_checkpoint_is_resumed_as_if_it_was_new(tmp_path: Path) -> None:
    for name in ("whole", "cut"):
        assert main(["--out", str(tmp_path / name), *TINY, "--steps", "2"]) == 0
    shutil.rmtree(tmp_path / "cut" / "checkpoints")
    assert main(["--out", str(tmp_path / "cut"), *QUIET, "--resume"]) == 0
    assert_same(stored(tmp_path / "cut", 2), stored(tmp_path / "whole", 2))


def test_bounds_are_switched_off_by_none(tmp_path: Path) -> None:
    arguments = ["--preset", "digits", *QUIET, "--min-snr-gamma", "none", "--clip-norm", "none", "--no-tensorboard"]
    assert main(["--out", str(tmp_path), *arguments, "--steps", "1", "--batch-size", "2", "--sample-every", "0"]) == 0
    settings = load_run(tmp_path).provenance["training"]
    assert (settings["min_snr_gamma"], settings["clip_norm"]) == (None, None)


def test_help_and_settings_need_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import ddpm_deploy.train.presets; from ddpm_deploy.train import TrainConfig, digits_arrays\n"
        "from ddpm_deploy.train.__main__ import main; main(['--help'])"
    )
    result = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert "--min-snr-gamma" in result.stdout


@pytest.mark.parametrize(
    ("number", "send", "code", "workers"),
    [
        (signal.SIGINT, os.killpg, 130, 0),
        (signal.SIGINT, os.killpg, 130, 1),  # a terminal sends it to the workers too
        (signal.SIGTERM, os.kill, 143, 0),
        (signal.SIGTERM, os.killpg, 143, 2),  # as schedulers do
    ],
)
def test_an_interrupt_writes_a_checkpoint_that_can_be_resumed(
    tmp_path: Path, number: int, send: Any, code: int, workers: int
) -> None:
    out = tmp_path / "run"
    arguments = ["--out", str(out), *TINY, "--steps", "1000000", "--checkpoint-every", "1000000", "--log-every", "1"]
    process = subprocess.Popen(
        [*COMMAND, *arguments, "--workers", str(workers)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for_steps(out / "metrics.csv", process)
    send(process.pid, number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert "the checkpoint is written, continue with --resume" in stdout
    (step,) = list_checkpoints(out / "checkpoints")
    assert step >= 2
    assert main(["--out", str(out), "--resume", "--cpu", "--quiet", "--steps", str(step + 1)]) == 0
    assert load_run(out).step == step + 1


def wait_for_steps(file: Path, process: subprocess.Popen[str]) -> None:
    for _ in range(1200):
        if file.is_file() and len(file.read_text().splitlines()) > 2:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.kill()
    raise AssertionError("training did not begin within two minutes")


def test_a_folder_of_images_can_be_trained_on_with_any_network(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (12, 10), (80 * i, 0, 255)).save(tmp_path / "images" / f"{i}.png")
    spec = {"kind": "unet", "config": {"in_channels": 3, "block_out_channels": [8], "norm_groups": 4}}
    (tmp_path / "net.json").write_text(json.dumps(spec))
    arguments = ["--data", f"folder:{tmp_path / 'images'}", "--size", "16", "--channels", "3", "--steps", "2"]
    out = tmp_path / "run"
    assert main(["--out", str(out), *TINY, *arguments, "--network", str(tmp_path / "net.json")]) == 0
    assert (load_run(out).sample_shape, load_run(out).data) == ((3, 16, 16), f"folder:{tmp_path / 'images'}")
    assert main(["--out", str(out), "--resume", "--cpu", "--quiet", "--steps", "3"]) == 0


def test_files_added_to_a_folder_are_noticed_on_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, out = tmp_path / "images", tmp_path / "run"
    images.mkdir()
    for name in "ab":
        Image.new("L", (8, 8), 80).save(images / f"{name}.png")
    data = ["--data", f"folder:{images}", "--size", "8", "--channels", "1"]
    assert main(["--out", str(out), *TINY, *data, "--steps", "2"]) == 0
    resume = ["--out", str(out), "--resume", *QUIET, "--steps", "3"]
    (images / "b.png").rename(images / "c.png")
    assert main(resume) == 2
    (images / "c.png").rename(images / "b.png")
    Image.new("L", (8, 8), 80).save(images / "0.png")
    capsys.readouterr()
    assert main(resume) == 2
    assert "data: got 3 files, expected the 2 that the run began with" in capsys.readouterr().err
    description = json.loads((out / "run.json").read_text())
    del description["listing"]  # as in runs of before it was kept
    (out / "run.json").write_text(json.dumps(description))
    assert main(resume) == 0
    assert json.loads((out / "run.json").read_text())["listing"]["count"] == 3


def test_a_broken_image_is_one_line_with_workers_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("L", (8, 8), 80).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"broken")
    data = ["--data", f"folder:{tmp_path}", "--size", "8", "--channels", "1", "--workers", "1"]
    assert main(["--out", str(tmp_path / "run"), *TINY, *data, "--steps", "2"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"ddpm-deploy train: error: {tmp_path / 'b.png'}: cannot be read as an image")
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lr", "-1"], "lr: got -1.0"),
        (["--data", "mnist"], "data: got 'mnist'"),
        (["--data", "cifar10:/nowhere"], "/nowhere: No such file"),
        (["--preset", "cifar10"], "data: missing"),
        (["--schedule", "flow"], "alpha = 0"),
        (["--timesteps", "0"], "T: got 0"),
        (["--network", "/nowhere.json"], "/nowhere.json: No such file"),
        (["--resume"], "preset: a run that is resumed"),
        (["--size", "16"], "size: is for folders of images, digits has its own"),
        (["--channels", "1"], "channels: is for folders of images, digits has its own"),
        (["--data", "cifar10:/nowhere", "--size", "16"], "size: is for folders"),
        (["--mixed-precision", "fp16"], "fp16"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["--out", str(tmp_path / "run"), *TINY, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("ddpm-deploy train: error: ")
    assert message in error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--prediction", "v"], "prediction: cannot be changed"),
        (["--optimizer", "adam"], "optimizer: cannot be changed"),
        (["--data", "digits"], "data: cannot be changed"),
        (["--steps", "1"], "steps: got 1, but"),
    ],
)
def test_what_a_run_is_cannot_be_changed_on_resume(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str], change: list[str], message: str
) -> None:
    out = tmp_path_factory.getbasetemp() / "fixed-run"
    if not out.exists():
        assert main(["--out", str(out), *TINY, "--steps", "2"]) == 0
    assert main(["--out", str(out), "--resume", "--cpu", "--quiet", *change]) == 2
    assert message in capsys.readouterr().err


def test_a_run_of_own_data_cannot_be_resumed_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_points(tmp_path)
    assert main(["--out", str(tmp_path), "--resume", "--cpu"]) == 2
    assert "data of your own" in capsys.readouterr().err


def test_an_unknown_option_is_refused_by_argparse(tmp_path: Path) -> None:
    result = subprocess.run(
        [*COMMAND, "--out", str(tmp_path), "--optimizer", "sgd"], env=environment(), capture_output=True, text=True
    )
    assert result.returncode == 2
    assert "invalid choice: 'sgd'" in result.stderr


def test_every_setting_has_an_option_with_help() -> None:
    text = build_parser().format_help()
    for name in vars(TrainConfig()):
        assert f"--{name.replace('_', '-')}" in text
    assert all(f"{name}: {preset.summary}" in " ".join(text.split()) for name, preset in PRESETS.items())


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_consistent(name: str) -> None:
    preset: Any = PRESETS[name]
    assert preset.size % preset.network.size_multiple == 0
    assert preset.config.warmup_steps < preset.config.steps
    assert preset.defaults.steps <= preset.T
