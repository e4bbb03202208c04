"""Samples as pictures."""

import numpy as np
import pytest
from PIL import Image

from ddpm_deploy.images import grid, is_picture, save_gif, to_pil, to_uint8


def test_the_ends_of_the_range_are_black_and_white() -> None:
    assert to_uint8(np.array([-1.0, 0.0, 1.0, 3.0, -9.0])).tolist() == [0, 128, 255, 255, 0]


def test_every_grey_level_survives_the_round_trip() -> None:
    levels = np.arange(256)
    assert (to_uint8(levels / 127.5 - 1) == levels).all()


def test_nan_is_refused_rather_than_drawn() -> None:
    with pytest.raises(ValueError, match="finite"):
        to_uint8(np.array([np.nan]))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_channels_become_the_mode(channels: int, mode: str) -> None:
    (picture,) = to_pil(np.zeros((1, channels, 4, 6), np.float32))
    assert (picture.mode, picture.size) == (mode, (6, 4))


def test_a_grid_places_each_sample_whole() -> None:
    samples = np.linspace(-1, 1, 5)[:, None, None, None] * np.ones((1, 1, 4, 4))
    picture = np.asarray(grid(samples, columns=3, scale=2, gap=1))
    assert picture.shape == (2 * 9 + 1, 3 * 9 + 1)
    assert (picture[1:9, 1:9] == 0).all()
    assert (picture[10:18, 10:18] == 255).all()
    assert (picture[:, 0] == 255).all()


@pytest.mark.parametrize("shape", [(2, 3), (1, 2, 4, 4), (0, 3, 4, 4)])
def test_what_is_no_picture_is_refused(shape: tuple) -> None:
    with pytest.raises(ValueError, match="expected pictures"):
        grid(np.zeros(shape))


def test_only_c_h_w_is_a_picture() -> None:
    assert is_picture((3, 8, 8))
    assert not is_picture((2, 8, 8))
    assert not is_picture((3, 8))


def test_an_animation_holds_every_frame(tmp_path) -> None:
    frames = [grid(np.full((1, 1, 8, 8), value)) for value in (-1.0, 0.0, 1.0)]
    save_gif(frames, tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == 3


def test_bounds_say_what_is_black_and_white() -> None:
    assert to_uint8(np.array([0.0, 0.5, 1.0]), (0.0, 1.0)).tolist() == [0, 128, 255]
