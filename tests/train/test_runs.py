"""The run folder that training writes and export reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from train_toys import SCHEDULE, train_points

from ddpm_deploy.bundle import Defaults, OutputAffine
from ddpm_deploy.errors import TrainingError
from ddpm_deploy.model import PointNet
from ddpm_deploy.train import load_run
from ddpm_deploy.train.checkpoint import read_tensors


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "ring"
    train_points(
        folder,
        prediction="v",
        variance="large",
        clip=(-1.5, 1.25),
        output=OutputAffine((2.0, 3.0), (0.5, 0.1), "mm"),
        defaults=Defaults("ddim", 7, "linspace", {"eta": 0.5}),
        name="a ring",
    )
    return folder


def test_a_run_is_read_back_whole(run_folder: Path) -> None:
    run = load_run(run_folder)
    assert (run.name, run.prediction, run.variance, run.clip) == ("a ring", "v", "large", (-1.5, 1.25))
    assert run.output == OutputAffine((2.0, 3.0), (0.5, 0.1), "mm")
    assert run.defaults == Defaults("ddim", 7, "linspace", {"eta": 0.5})
    assert (run.sample_shape, run.conditions, run.step) == ((2,), (), 12)
    assert run.schedule == SCHEDULE
    assert run.spec is not None
    assert run.spec["kind"] == "mlp"
    assert json.loads(json.dumps(run.provenance))["training"]["lr"] == 0.01


def test_the_network_has_the_averaged_weights_in_eval_mode(run_folder: Path) -> None:
    run = load_run(run_folder)
    assert isinstance(run.network, PointNet)
    assert not run.network.training
    parts = {name: read_tensors(run_folder / "checkpoints" / "step-00000012", name) for name in ("ema", "model")}
    state = run.network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in parts["ema"].items())
    assert not torch.equal(parts["ema"]["inward.weight"], parts["model"]["inward.weight"])


def test_an_older_checkpoint_can_be_asked_for(run_folder: Path) -> None:
    assert load_run(run_folder, step=10).step == 10
    with pytest.raises(TrainingError, match="no step 11, only 10, 12"):
        load_run(run_folder, step=11)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"holds no run.json"):
        load_run(tmp_path)


def damaged(run_folder: Path, tmp_path: Path, text: str) -> Path:
    (tmp_path / "run.json").write_text(text)
    (tmp_path / "checkpoints").symlink_to(run_folder / "checkpoints")
    return tmp_path


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"format": "other"}', "\x00"])
def test_a_file_that_is_no_description_is_refused(run_folder: Path, tmp_path: Path, text: str) -> None:
    with pytest.raises(TrainingError, match=r"run.json"):
        load_run(damaged(run_folder, tmp_path, text))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format_version", 2),
        ("prediction", "score"),
        ("variance", 1),
        ("clip", [1, -1]),
        ("clip", "wide"),
        ("output", {"scale": [1.0]}),
        ("defaults", {"solver": "ddim", "steps": 1, "spacing": "leading", "surprise": 1}),
        ("training", {"steps": 0}),
        ("schedule", {"alpha": [0.5, 0.6], "sigma": [0.5, 0.4]}),
        ("schedule", {"alpha": ["a"], "sigma": [1]}),
        ("conditions", [{"name": "labels"}]),
        ("network", {"kind": "cnn", "config": {}}),
        ("network", {"kind": "mlp", "config": {"dim": 0}}),
        ("sample_shape", ["a"]),
        ("surprise", 1),
    ],
)
def test_a_wrong_field_is_refused(run_folder: Path, tmp_path: Path, key: str, value: Any) -> None:
    members = json.loads((run_folder / "run.json").read_text())
    with pytest.raises(TrainingError, match=r"run\.json"):
        load_run(damaged(run_folder, tmp_path, json.dumps(members | {key: value})))


def test_every_field_is_needed(run_folder: Path, tmp_path: Path) -> None:
    members = json.loads((run_folder / "run.json").read_text())
    for i, key in enumerate(members):
        folder = tmp_path / str(i)
        folder.mkdir()
        rest = {name: value for name, value in members.items() if name != key}
        with pytest.raises(TrainingError, match=key):
            load_run(damaged(run_folder, folder, json.dumps(rest)))
