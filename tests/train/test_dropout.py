"""Dropping conditions in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from train_toys import quick, ring

from ddpm_deploy.bundle import Condition
from ddpm_deploy.schedule import NoiseSchedule
from ddpm_deploy.train import Data, load_run, train
from ddpm_deploy.train.__main__ import main
from ddpm_deploy.train.api import AS_GIVEN
from ddpm_deploy.train.dropout import drop_conditions
from ddpm_deploy.train.presets import PRESETS
from ddpm_deploy.train.setup import new_run

LABELS = Condition("labels", (), "int64", ("a", "b"), null=2)
TEXT = Condition("text", (2, 3), "float32", null=0.0)
KEPT = Condition("goal", (1,), "float32")


def test_a_dropped_sample_loses_all_that_has_a_null_and_keeps_the_rest() -> None:
    given = {"labels": torch.tensor([0, 1, 1]), "text": torch.ones(3, 2, 3), "goal": torch.ones(3, 1)}
    found = drop_conditions(given, (LABELS, TEXT, KEPT), torch.tensor([True, False, True]))
    assert found["labels"].tolist() == [2, 1, 2]
    assert found["text"].sum((1, 2)).tolist() == [0, 6, 0]
    assert found["goal"].tolist() == [[1], [1], [1]]
    assert given["labels"].tolist() == [0, 1, 1]


class Recorder(nn.Module):
    """Keeps the labels that it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        if self.training:
            self.seen.append(labels)
        out: Tensor = self.linear(x)
        return out


def labelled(null: int | None = 2) -> Data:
    samples = [(x, {"labels": torch.tensor(i % 2)}) for i, x in enumerate(ring(64))]
    return Data("ring", samples, (2,), AS_GIVEN, None, conditions=(Condition("labels", (), "int64", ("a", "b"), null),))


def labels_seen(out: Path, data: Data, **settings: Any) -> Tensor:
    network = Recorder()
    train(network, data, NoiseSchedule.cosine(20), out=out, config=quick(batch_size=64, **settings), cpu=True)
    return torch.cat(network.seen)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_trainer_drops_the_share_that_it_is_told(tmp_path: Path, share: float) -> None:
    seen = labels_seen(tmp_path, labelled(), condition_dropout=share)
    assert (seen == 2).float().mean().item() == pytest.approx(share, abs=4 * (share * (1 - share) / len(seen)) ** 0.5)
    assert share == 1 or set(seen.tolist()) >= {0, 1}


def test_a_condition_without_a_null_is_never_dropped(tmp_path: Path) -> None:
    assert set(labels_seen(tmp_path, labelled(null=None), condition_dropout=1.0).tolist()) == {0, 1}


def test_what_a_data_set_says_of_its_conditions_is_recorded_and_must_be_so(tmp_path: Path) -> None:
    train(Recorder(), labelled(), NoiseSchedule.cosine(20), out=tmp_path / "run", config=quick(), cpu=True)
    assert load_run(tmp_path / "run", network=Recorder()).conditions == (LABELS,)
    wrong = Data("ring", labelled().dataset, (2,), AS_GIVEN, None, conditions=(TEXT,))
    with pytest.raises(ValueError, match=r"text: got float32 \(2, 3\), but the samples come with labels of int64 \(\)"):
        train(Recorder(), wrong, NoiseSchedule.cosine(20), out=tmp_path / "other", config=quick(), cpu=True)


def test_the_digits_come_with_labels_and_other_data_of_the_preset_does_not(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("L", (8, 8), 255).save(tmp_path / "images" / "a.png")
    preset = PRESETS["digits"]
    assert [c.name for c in new_run(tmp_path / "run", preset, {})[2].conditions] == ["labels"]
    assert new_run(tmp_path / "run", preset, {"labels": False})[2].conditions == ()
    assert new_run(tmp_path / "run", preset, {"data": f"folder:{tmp_path / 'images'}"})[2].conditions == ()


def test_the_command_trains_a_network_with_the_labels_of_its_data_and_resumes_it(tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path / "run"), "--cpu", "--quiet"]
    assert main([*arguments, "--preset", "tiny", "--labels", "--steps", "2", "--condition-dropout", "0.2"]) == 0
    run = load_run(tmp_path / "run")
    assert run.conditions == (Condition("labels", (), "int64", tuple("0123456789"), 10),)
    assert run.network.label.num_embeddings == 11
    assert run.training.condition_dropout == 0.2
    assert main([*arguments, "--resume", "--steps", "3"]) == 0
    assert load_run(tmp_path / "run").step == 3
