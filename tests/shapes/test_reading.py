"""A text encoder that was taught says who is where, also of combinations that it never met."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddpm_deploy.model import TextConfig, TextEncoder
from ddpm_deploy.shapes.caption import captions
from ddpm_deploy.shapes.reading import facts_loss, teach
from ddpm_deploy.shapes.scene import FACT_SIZES, UNASKED, draw_scenes, facts
from ddpm_deploy.train.captioned import CaptionedShapes


def pooled_and_facts(encoder: TextEncoder, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    scenes, indices = draw_scenes(99, np.arange(count), split), np.arange(count)
    tokens = torch.from_numpy(CaptionedShapes(1).tokenizer.encode(captions(scenes, 99, indices)))
    with torch.inference_mode():
        return encoder(tokens)[1].numpy(), facts(scenes)


def read_by_a_matrix(encoder: TextEncoder) -> np.ndarray:
    """How often least squares reads each fact of held-out scenes, fitted to scenes of the training: (5,)."""
    features, seen = pooled_and_facts(encoder, "training", 4000)
    others, asked = pooled_and_facts(encoder, "held-out", 1000)
    right = []
    for column, size in enumerate(FACT_SIZES):
        rows, counted = seen[:, column] != UNASKED, asked[:, column] != UNASKED
        matrix, *_ = np.linalg.lstsq(np.c_[features[rows], np.ones(rows.sum())], np.eye(size)[seen[rows, column]])
        guess = (np.c_[others, np.ones(len(others))] @ matrix).argmax(axis=1)
        right.append(np.mean(guess[counted] == asked[counted, column]))
    return np.array(right)


@pytest.mark.slow
def test_a_taught_encoder_says_who_is_where_also_of_what_was_held_out() -> None:
    torch.manual_seed(0)
    tokenizer = CaptionedShapes(1).tokenizer
    encoder = TextEncoder(TextConfig(tokenizer.size, tokenizer.length))
    before = read_by_a_matrix(encoder)
    teach(encoder, tokenizer)
    after = read_by_a_matrix(encoder)
    assert before[1:].max() < 0.8
    assert after.min() > 0.9


@pytest.mark.parametrize("progress", [True, False])
def test_learning_to_read_shows_a_bar_where_it_is_asked_for(capsys: pytest.CaptureFixture[str], progress: bool) -> None:
    tokenizer = CaptionedShapes(1).tokenizer
    teach(TextEncoder(TextConfig(tokenizer.size, tokenizer.length)), tokenizer, steps=2, progress=progress)
    assert ("learning to read: 100%" in capsys.readouterr().err) == progress


def test_what_no_one_asks_for_does_not_count() -> None:
    logits = torch.randn(3, sum(FACT_SIZES))
    asked = torch.tensor([[0, 1, 2, UNASKED, UNASKED], [1, 0, 0, 5, 3], [2, 3, 1, 0, 0]])
    other = logits.clone()
    other[0, -10:] += 5  # colour and shape of the second object of a scene with one
    torch.testing.assert_close(facts_loss(logits, asked), facts_loss(other, asked))


def test_a_fresh_run_is_taught_and_one_with_weights_is_not(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ddpm_deploy.train.presets import PRESETS
    from ddpm_deploy.train.runs import write_description
    from ddpm_deploy.train.setup import new_run, resumed_run

    taught = []
    monkeypatch.setattr(CaptionedShapes, "prepare", lambda self, network, progress: taught.append(network))
    network, _, description = new_run(tmp_path, PRESETS["shapes"], {})
    assert taught == [network]
    write_description(tmp_path, description)
    network, *_ = resumed_run(tmp_path, {})
    assert taught[1:] == [network]
    monkeypatch.setattr("ddpm_deploy.train.setup.list_checkpoints", lambda folder: [folder / "step-00000001"])
    resumed_run(tmp_path, {})
    assert len(taught) == 2
