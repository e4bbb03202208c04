"""Checkpoints on disk: whole or not there, and checked when they are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from ddpm_deploy.errors import TrainingError
from ddpm_deploy.train import checkpoint as module
from ddpm_deploy.train.checkpoint import (
    find_checkpoint,
    list_checkpoints,
    prune_checkpoints,
    read_state,
    read_tensors,
    save_checkpoint,
)

PARTS = {"model": {"a": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(7)}, "ema": {"a": torch.zeros(2, 3)}}


def save(folder: Path, step: int) -> Path:
    return save_checkpoint(folder, step, PARTS, {"lr": 0.1, "groups": [1, None]})


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    path = save(tmp_path, 12)
    assert path.name == "step-00000012"
    assert read_state(path)["state"] == {"lr": 0.1, "groups": [1, None]}
    for name, tensors in PARTS.items():
        read = read_tensors(path, name)
        assert set(read) == set(tensors)
        assert all(torch.equal(read[key], tensors[key]) and read[key].dtype == tensors[key].dtype for key in tensors)


def test_shared_and_transposed_tensors_are_saved_by_value(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    path = save_checkpoint(tmp_path, 1, {"model": {"tied": weight, "again": weight, "t": weight.T}}, {})
    assert torch.equal(read_tensors(path, "model")["t"], weight.T)


def test_newest_and_named_checkpoints_are_found(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        save(tmp_path, step)
    assert list_checkpoints(tmp_path) == [9, 20, 100]
    assert find_checkpoint(tmp_path).name == "step-00000100"
    assert find_checkpoint(tmp_path, 20).name == "step-00000020"
    with pytest.raises(TrainingError, match="no step 21, only 9, 20, 100"):
        find_checkpoint(tmp_path, 21)


def test_pruning_keeps_the_newest_and_clears_what_dead_writers_left(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / ".step-00000004.17.new").mkdir()
    prune_checkpoints(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def test_saving_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 5)
    path = save_checkpoint(tmp_path, 5, {"model": {"b": torch.ones(1)}}, {})
    assert set(read_tensors(path, "model")) == {"b"}
    assert not (path / "ema.safetensors").exists()


@pytest.mark.parametrize("calls", range(6))
def test_an_interrupted_write_leaves_nothing_that_looks_like_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """Fail at the n-th flush or rename."""
    save(tmp_path, 1)
    left = [calls]

    def fail_later(real: Any) -> Any:
        def wrapped(*args: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise OSError("disk full")
            return real(*args)

        return wrapped

    monkeypatch.setattr(module.os, "fsync", fail_later(os.fsync))
    monkeypatch.setattr(module.os, "rename", fail_later(os.rename))
    if calls < 5:
        with pytest.raises(OSError, match="disk full"):
            save(tmp_path, 2)
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    else:
        with pytest.raises(OSError, match="disk full"):
            save(tmp_path, 2)
        assert list_checkpoints(tmp_path) == [1, 2]
        read_tensors(find_checkpoint(tmp_path), "model")


def flip_bit(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


@pytest.mark.parametrize("position", [0, 40, -1])
def test_a_flipped_bit_is_noticed(tmp_path: Path, position: int) -> None:
    file = save(tmp_path, 3) / "ema.safetensors"
    data = file.read_bytes()
    file.write_bytes(flip_bit(data, position % len(data)))
    with pytest.raises(TrainingError, match=r"ema.safetensors: sha256: got .* damaged: remove the folder"):
        read_tensors(file.parent, "ema")


def test_a_truncated_or_missing_file_is_noticed(tmp_path: Path) -> None:
    file = save(tmp_path, 3) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(TrainingError, match="size_bytes"):
        read_tensors(file.parent, "model")
    file.unlink()
    with pytest.raises(TrainingError, match="is missing"):
        read_tensors(file.parent, "model")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"step": 3}'])
def test_a_broken_state_is_refused(tmp_path: Path, text: str) -> None:
    path = save(tmp_path, 3)
    (path / "state.json").write_text(text)
    with pytest.raises(TrainingError, match=r"state.json"):
        read_state(path)


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    file = path / "state.json"
    file.write_text(file.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(TrainingError, match="format_version: got 2, expected 1"):
        read_state(path)
