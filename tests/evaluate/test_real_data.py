"""Where real samples come from, and how they are parted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm_deploy.bundle import Condition, default_bundle, read_bundle
from ddpm_deploy.evaluate.data import conditions_for, open_data
from ddpm_deploy.shapes.scene import COLOURS, HELD_OUT
from ddpm_deploy.tokenizer import Tokenizer

DIGITS = read_bundle(default_bundle()).manifest
RGB = replace(DIGITS, sample_shape=(3, 8, 8), conditions=())
LABELLED = replace(RGB, conditions=(Condition("labels", (), "int64", ("a", "b", "c"), null=3),))


def test_digits_have_seventeen_levels_and_a_part_that_was_never_trained_on(digits):
    assert (len(digits.known), len(digits.held_out), digits.held_out.levels) == (1437, 360, 17)
    assert len(np.unique(digits.known.x)) == 17
    known = {picture.tobytes() for picture in digits.known.x}
    assert sum(picture.tobytes() in known for picture in digits.held_out.x) == 0


def test_bytes_of_an_archive_become_the_network_range_and_a_fifth_is_held_out(labelled_archive):
    data = open_data(f"npz:{labelled_archive}", RGB)
    assert (len(data.known), len(data.held_out), data.known.levels) == (48, 12, 256)
    everything = np.load(labelled_archive)["x"]
    assert data.known.x.min() == pytest.approx(everything.min() / 127.5 - 1, abs=0.05)
    assert "may have been trained on it" in data.split


def test_floats_of_an_archive_are_taken_as_they_are_and_have_no_levels(tmp_path):
    x = np.random.default_rng(0).standard_normal((20, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    data = open_data(f"npz:{tmp_path / 'x.npz'}", RGB)
    assert data.known.levels is None
    assert sorted([*data.known.x[:, 0, 0, 0], *data.held_out.x[:, 0, 0, 0]]) == sorted(x[:, 0, 0, 0])


def test_a_folder_is_read_as_the_trainer_reads_it(tmp_path):
    for k in range(5):
        Image.new("RGB", (8, 8), (50 * k, 0, 0)).save(tmp_path / f"{k}.png")
    data = open_data(f"folder:{tmp_path}", RGB)
    assert (len(data.known), len(data.held_out), data.known.levels) == (4, 1, 256)


def test_the_held_out_part_may_come_from_elsewhere(labelled_archive, tmp_path):
    np.savez(tmp_path / "other.npz", x=np.zeros((7, 3, 8, 8), np.uint8))
    data = open_data(f"npz:{labelled_archive}", RGB, held_out=f"npz:{tmp_path / 'other.npz'}")
    assert (len(data.known), len(data.held_out)) == (60, 7)


def test_large_sets_are_thinned_by_chance_but_always_alike(labelled_archive):
    one, other = (open_data(f"npz:{labelled_archive}", RGB, most=10) for _ in range(2))
    assert len(one.known) == len(one.held_out) == 10
    assert one.digest == other.digest
    assert one.digest != open_data(f"npz:{labelled_archive}", RGB, most=11).digest


def test_labels_go_to_the_network_and_the_null_where_there_are_none(labelled_archive, tmp_path):
    data = open_data(f"npz:{labelled_archive}", LABELLED)
    assert np.array_equal(conditions_for(data.known, LABELLED)["labels"], data.known.labels)
    np.savez(tmp_path / "bare.npz", x=np.zeros((10, 3, 8, 8), np.uint8))
    bare = open_data(f"npz:{tmp_path / 'bare.npz'}", LABELLED)
    assert set(conditions_for(bare.known, LABELLED)["labels"]) == {3}
    with pytest.raises(ValueError, match="condition: got none, expected labels"):
        conditions_for(bare.known, replace(RGB, conditions=(Condition("labels", (), "int64", ("a",)),)))
    assert conditions_for(data.known, RGB) == {}


def test_shapes_are_scenes_of_8_bits_with_their_captions_and_facts():
    manifest = read_bundle(default_bundle("shapes")).manifest
    data = open_data("shapes", manifest, most=50)
    assert (len(data.known), len(data.held_out), data.known.levels) == (50, 50, 256)
    assert np.allclose((data.known.x + 1) * 127.5, np.rint((data.known.x + 1) * 127.5), atol=1e-4)
    assert {picture.tobytes() for picture in data.known.x}.isdisjoint(picture.tobytes() for picture in data.held_out.x)
    texts = [manifest.tokenizer.decode(row) for row in data.held_out.conditions["tokens"]]
    assert not any(f"{colour} {kind}" in text for text in texts for colour, kind in HELD_OUT)
    colours = [list(COLOURS)[first] in text for text, (_, first, *_) in zip(texts, data.held_out.facts, strict=True)]
    assert all(colours)


def test_captions_become_the_tokens_of_the_models_own_tokenizer(monkeypatch):
    monkeypatch.setattr("ddpm_deploy.evaluate.data.SHAPES_KNOWN", 5)
    monkeypatch.setattr("ddpm_deploy.evaluate.data.SHAPES_HELD_OUT", 5)
    manifest = read_bundle(default_bundle("shapes")).manifest
    backwards = Tokenizer(manifest.tokenizer.vocabulary[::-1], manifest.tokenizer.length)
    own, other = (open_data("shapes", model, most=5).known.conditions["tokens"]
                  for model in (manifest, replace(manifest, tokenizer=backwards)))  # fmt: skip
    assert not np.array_equal(own, other)
    assert [backwards.decode(row) for row in other] == [manifest.tokenizer.decode(row) for row in own]
    with pytest.raises(ValueError, match="no tokenizer that makes 'tokens' of them"):
        open_data("shapes", replace(manifest, tokenizer=None))
    textless = replace(manifest, tokenizer=None, files=(), conditions=())
    assert open_data("shapes", textless, most=5).known.conditions == {}


def test_a_model_with_an_encoder_is_given_what_that_reads_and_is_asked_for_what_the_data_show():
    manifest = read_bundle(default_bundle("shapes")).manifest
    known = open_data("shapes", manifest, most=5).known
    assert conditions_for(known, manifest).keys() == {"tokens"}
    assert known.asked(manifest).shape == (5, 5)
    bare = replace(known, conditions={})
    assert conditions_for(bare, manifest).keys() == {"text", "pooled"}
    assert bare.asked(manifest) is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("magic", "data: got 'magic', expected digits"),
        ("digits", r"'digits' has samples of shape \(1, 8, 8\), the model \(3, 8, 8\)"),
    ],
)
def test_a_source_that_does_not_fit_is_refused(source, message):
    with pytest.raises(ValueError, match=message):
        open_data(source, RGB)


@pytest.mark.parametrize("content", [b"no archive", None, np.zeros((3, 2)), np.zeros((2, 3, 8, 8), np.int32)])
def test_an_archive_without_pictures_is_refused(tmp_path: Path, content):
    path = tmp_path / "bad.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **({"y": np.zeros(3)} if content is None else {"x": content}))
    with pytest.raises(ValueError, match=r"bad\.npz: "):
        open_data(f"npz:{path}", RGB)
