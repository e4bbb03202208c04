"""The data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from ddpm_deploy.bundle import Condition
from ddpm_deploy.errors import TrainingError
from ddpm_deploy.train import digits_arrays, load_data
from ddpm_deploy.train.batches import Batches


def test_digits_are_split_without_overlap_or_loss() -> None:
    (train, train_labels), (held_out, held_out_labels) = digits_arrays(), digits_arrays(held_out=True)
    assert (train.shape, held_out.shape) == ((1437, 1, 8, 8), (360, 1, 8, 8))
    assert train.dtype == np.float32
    assert (train.min(), train.max()) == (-1, 1)
    both = np.concatenate([train, held_out]).reshape(-1, 64)
    real = load_digits().data / 8 - 1
    np.testing.assert_array_equal(both[np.lexsort(both.T)], real[np.lexsort(real.T)].astype(np.float32))
    np.testing.assert_array_equal(
        np.bincount(np.append(train_labels, held_out_labels)), np.bincount(load_digits().target)
    )
    assert np.bincount(held_out_labels).min() >= 20


def test_digits_for_training_are_the_training_half() -> None:
    data = load_data("digits")
    assert (data.sample_shape, data.clip) == ((1, 8, 8), (-1.0, 1.0))
    np.testing.assert_array_equal(Batches(data.dataset, 1, 0).first(1437)[0].numpy(), digits_arrays()[0])
    assert torch.equal(data.dataset[5], data.dataset.__getitems__([5])[0])


def test_labels_come_with_the_digits_when_they_are_asked_for() -> None:
    data = load_data("digits", labels=True)
    assert data.conditions == (Condition("labels", (), "int64", tuple("0123456789"), 10),)
    x, condition = Batches(data.dataset, 1, 0).first(1437)
    np.testing.assert_array_equal(x.numpy(), digits_arrays()[0])
    np.testing.assert_array_equal(condition["labels"].numpy(), digits_arrays()[1])
    assert load_data("digits").conditions == ()


def test_the_subfolders_of_a_folder_name_its_classes(tmp_path: Path) -> None:
    for name, grey in (("dog/old/a.png", 255), ("cat/b.png", 0), ("dog/c.png", 255)):
        picture(tmp_path / name, "L", (4, 4), grey)
    data = load_data(f"folder:{tmp_path}", size=4, channels=1, labels=True)
    assert data.conditions == (Condition("labels", (), "int64", ("cat", "dog"), 2),)
    x, condition = Batches(data.dataset, 1, 0).first(3)
    assert condition["labels"].tolist() == [0, 1, 1]
    assert x[:, 0, 0, 0].tolist() == [-1, 1, 1]
    picture(tmp_path / "stray.png", "L", (4, 4), 0)
    with pytest.raises(TrainingError, match=r"stray.png: has no label, expected it in a subfolder"):
        load_data(f"folder:{tmp_path}", size=4, channels=1, labels=True)


def test_output_units_of_pictures_are_intensity() -> None:
    output = load_data("digits").output
    assert [output.scale[0] * value + output.offset[0] for value in (-1, 1)] == [0, 1]


def picture(path: Path, mode: str, size: tuple[int, int], colour: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)  # type: ignore[arg-type]


def test_a_folder_gives_its_images_in_name_order_whatever_their_mode_and_shape(tmp_path: Path) -> None:
    picture(tmp_path / "b.png", "RGB", (20, 10), (255, 0, 0))
    picture(tmp_path / "a" / "1.jpg", "L", (16, 16), 255)
    picture(tmp_path / "c.PNG", "P", (9, 30), 0)
    picture(tmp_path / "d.png", "RGBA", (8, 8), (0, 0, 255, 0))
    (tmp_path / "notes.txt").write_text("no image")
    data = load_data(f"folder:{tmp_path}", size=8, channels=3)
    samples = torch.stack([data.dataset[i] for i in range(len(data.dataset))])
    assert samples.shape == (4, 3, 8, 8)
    assert samples.dtype == torch.float32
    expected = [[1, 1, 1], [1, -1, -1], [-1, -1, -1], [1, 1, 1]]
    assert samples.mean(dim=(2, 3)).round().tolist() == expected


def test_a_folder_can_be_read_as_grey(tmp_path: Path) -> None:
    picture(tmp_path / "b.png", "RGB", (8, 8), (255, 255, 255))
    sample = load_data(f"folder:{tmp_path}", size=4, channels=1).dataset[0]
    assert torch.equal(sample, torch.ones(1, 4, 4))


def test_the_centre_of_an_oblong_image_is_kept_with_its_orientation(tmp_path: Path) -> None:
    pixels = np.zeros((8, 24), dtype=np.uint8)
    pixels[:4, 8:16] = 255  # upper half of the centre
    pixels[:, :8] = 128  # cut off
    Image.fromarray(pixels).save(tmp_path / "a.png")
    sample = load_data(f"folder:{tmp_path}", size=8, channels=1).dataset[0]
    assert torch.equal(sample[0], torch.cat([torch.ones(4, 8), -torch.ones(4, 8)]))


def test_a_photo_is_turned_as_its_exif_data_says(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8), dtype=np.uint8)
    pixels[:, :4] = 255  # left half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    sample = load_data(f"folder:{tmp_path}", size=8, channels=1).dataset[0]
    assert torch.equal(sample[0], torch.cat([torch.ones(4, 8), -torch.ones(4, 8)]))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_grey_pictures_of_16_bits_keep_their_range(tmp_path: Path, suffix: str) -> None:
    pixels = np.repeat(np.array([0, 25700, 51400, 65535], dtype=np.uint16), 4).reshape(4, 4)
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}")
    sample = load_data(f"folder:{tmp_path}", size=4, channels=1).dataset[0]
    assert ((sample[0, :, 0] + 1) * 127.5).round().tolist() == [0, 100, 200, 255]


def test_grey_pictures_of_unknown_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(
        TrainingError, match=r"a.tif: cannot be read as an image \(mode F with values outside 16 bits\)"
    ):
        load_data(f"folder:{tmp_path}", size=4, channels=1).dataset[0]


@pytest.mark.parametrize(("mode", "colour"), [("RGBA", (255, 0, 0, 51)), ("LA", (0, 51))])
def test_what_is_transparent_shows_white(tmp_path: Path, mode: str, colour: object) -> None:
    picture(tmp_path / "a.png", mode, (4, 4), colour)
    sample = load_data(f"folder:{tmp_path}", size=4, channels=3).dataset[0]
    expected = [255, 204, 204] if mode == "RGBA" else [204, 204, 204]
    assert ((sample[:, 0, 0] + 1) * 127.5).round().tolist() == expected


def test_four_channels_keep_their_transparency(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", "RGBA", (4, 4), (255, 0, 0, 51))
    sample = load_data(f"folder:{tmp_path}", size=4, channels=4).dataset[0]
    assert ((sample[:, 0, 0] + 1) * 127.5).round().tolist() == [255, 0, 0, 51]


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(TrainingError, match=r"broken.png: cannot be read as an image"):
        load_data(f"folder:{tmp_path}", size=8).dataset[0]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mnist", {}, "expected digits, folder:PATH or cifar10:PATH"),
        ("folder:", {"size": 8}, "expected digits, folder:PATH"),
        ("digits:x", {}, "expected digits"),
        ("folder:{}", {}, "size: missing"),
        ("folder:{}", {"size": 0}, "size: got 0"),
        ("folder:{}", {"size": 8, "channels": 2}, "channels: got 2"),
        ("folder:{}", {"size": 8}, "holds no images"),
        ("folder:{}/none", {"size": 8}, "is no folder"),
        ("cifar10:{}/none", {}, "No such file"),
        ("cifar10:{}", {}, "holds no data_batch_1, data_batch_2"),
    ],
)
def test_data_that_is_not_there_is_refused(tmp_path: Path, name: str, options: dict[str, int], message: str) -> None:
    with pytest.raises((ValueError, TrainingError, OSError), match=message):
        load_data(name.format(tmp_path), **options)  # type: ignore[arg-type]
