"""Rendered scenes show what their captions say, repeat from a seed, and keep some combinations out of training."""

from __future__ import annotations

import numpy as np
import pytest

from ddpm_deploy.shapes.caption import WORDINGS, captions, plain_captions, vocabulary
from ddpm_deploy.shapes.render import BACKGROUND, render
from ddpm_deploy.shapes.scene import (
    COLOURS,
    HELD_OUT,
    RELATIONS,
    SHAPES,
    SIDE,
    UNASKED,
    Scenes,
    draw_scenes,
    facts,
    is_held_out,
    uniforms,
)

MANY = np.arange(4000)
PINNED = ["a blue triangle above a purple square", "a yellow cross", "a red square below a blue triangle"]
PINNED_MEANS = [-0.7339396, -0.6508947, -0.7705328]
NAMES = tuple(COLOURS)


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return draw_scenes(0, MANY)


def shown(scenes: Scenes, i: int) -> list[tuple[str, str]]:
    count = 1 if scenes.relation[i] == 0 else 2
    return [(NAMES[scenes.colour[i, k]], SHAPES[scenes.shape[i, k]]) for k in range(count)]


def test_a_scene_depends_on_its_seed_and_index_alone(scenes: Scenes) -> None:
    some = draw_scenes(0, [17, 3])
    np.testing.assert_array_equal(render(some), render(scenes)[[17, 3]])
    assert captions(some, 0, [17, 3]) == [captions(scenes, 0, MANY)[i] for i in (17, 3)]
    assert not np.array_equal(render(draw_scenes(1, [17])), render(draw_scenes(0, [17])))


def test_the_first_scenes_stay_what_they_were(scenes: Scenes) -> None:
    assert plain_captions(draw_scenes(0, range(3))) == PINNED
    np.testing.assert_allclose(render(draw_scenes(0, range(3))).mean(axis=(1, 2, 3)), PINNED_MEANS, atol=1e-6)


def test_the_numbers_are_uniform_and_independent_between_columns() -> None:
    u = uniforms(3, np.arange(20_000), 4)
    np.testing.assert_allclose(u.mean(axis=0), 0.5, atol=0.01)
    np.testing.assert_allclose(u.var(axis=0), 1 / 12, atol=0.002)
    correlation = np.corrcoef(u.T) - np.eye(4)
    assert np.abs(correlation).max() < 0.03
    assert 0 <= u.min() < u.max() < 1


def test_no_training_scene_has_a_held_out_combination(scenes: Scenes) -> None:
    assert not {pair for i in MANY for pair in shown(scenes, i)} & set(HELD_OUT)


def test_every_held_out_scene_has_one() -> None:
    scenes = draw_scenes(0, MANY, "held-out")
    assert all(set(shown(scenes, i)) & set(HELD_OUT) for i in MANY)
    assert {pair for i in MANY for pair in shown(scenes, i)} >= set(HELD_OUT)


def test_every_colour_and_every_shape_of_a_held_out_combination_is_seen_in_others(scenes: Scenes) -> None:
    seen = {pair for i in MANY for pair in shown(scenes, i)}
    assert seen == {(name, kind) for name in NAMES for kind in SHAPES} - set(HELD_OUT)
    colours, kinds = np.meshgrid(range(len(NAMES)), range(len(SHAPES)), indexing="ij")
    assert is_held_out(colours, kinds).sum() == len(HELD_OUT)


def test_all_relations_occur_and_objects_lie_as_they_say(scenes: Scenes) -> None:
    assert set(scenes.relation) == set(range(len(RELATIONS)))
    offset = scenes.centre[:, 0] - scenes.centre[:, 1]  # (n, 2)
    reach = scenes.radius.sum(axis=1)
    for relation, axis, sign in (("left of", 0, -1), ("right of", 0, 1), ("above", 1, -1), ("below", 1, 1)):
        rows = scenes.relation == RELATIONS.index(relation)
        assert (sign * offset[rows, axis] > reach[rows]).all()
        assert (np.abs(offset[rows, 1 - axis]) < reach[rows] / 2).all()


def test_pictures_are_in_range_and_objects_inside_them(scenes: Scenes) -> None:
    pictures = render(scenes)
    assert pictures.shape == (len(MANY), 3, SIDE, SIDE)
    assert pictures.dtype == np.float32
    assert pictures.min() >= -1
    assert pictures.max() <= 1
    for k in range(2):
        rows = scenes.relation >= k  # all, then those of two objects
        reach = 1.1 * scenes.radius[rows, k, None]  # a triangle's corners
        assert (scenes.centre[rows, k] - reach >= 0).all()
        assert (scenes.centre[rows, k] + reach <= SIDE).all()


def test_an_object_has_its_colour_in_its_middle(scenes: Scenes) -> None:
    pictures, palette = render(scenes), np.array(list(COLOURS.values())) * 2 - 1
    for k in range(2):
        rows = MANY if k == 0 else MANY[scenes.relation != 0]
        x, y = scenes.centre[rows, k].astype(int).T
        np.testing.assert_allclose(pictures[rows, :, y, x], palette[scenes.colour[rows, k]], atol=0.02)


def test_edges_are_smooth(scenes: Scenes) -> None:
    """Coverage follows the area: a circle's is pi r^2, to a tenth of a pixel."""
    rows = (scenes.relation == 0) & (scenes.shape[:, 0] == SHAPES.index("circle"))
    red = render(scenes)[rows][:, 0] / 2 + 0.5
    colour = np.array(list(COLOURS.values()))[scenes.colour[rows, 0], 0]
    area = ((red - BACKGROUND) / (colour - BACKGROUND)[:, None, None]).sum(axis=(1, 2))
    np.testing.assert_allclose(area, np.pi * scenes.radius[rows, 0] ** 2, rtol=0.01)


def test_captions_name_what_is_shown_in_words_that_the_vocabulary_has(scenes: Scenes) -> None:
    known = set(vocabulary())
    for i, text in enumerate(captions(scenes, 0, MANY)):
        assert set(text.split()) <= known
        for colour, kind in shown(scenes, i):
            assert f"{colour} {kind}" in text
        relation = RELATIONS[scenes.relation[i]]
        if relation in WORDINGS:
            assert sum(f" {phrase} " in text for phrase in WORDINGS[relation]) >= 1


def test_a_scene_has_many_wordings() -> None:
    scene = draw_scenes(0, [5] * 300)
    assert len(set(captions(scene, 0, MANY[:300]))) > 20


def test_facts_are_the_same_from_either_object_s_side() -> None:
    one = Scenes(np.array([1]), np.array([[0, 2]]), np.array([[1, 3]]), np.zeros((1, 2, 2)), np.ones((1, 2)))
    other = Scenes(np.array([2]), np.array([[2, 0]]), np.array([[3, 1]]), np.zeros((1, 2, 2)), np.ones((1, 2)))
    np.testing.assert_array_equal(facts(one), facts(other))
    assert facts(one).tolist() == [[1, 0, 1, 2, 3]]


def test_a_single_object_asks_for_no_second_one(scenes: Scenes) -> None:
    table = facts(scenes)
    assert ((table[:, 3] == UNASKED) == (scenes.relation == 0)).all()


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="split: got 'test', expected one of training, held-out, all"):
        draw_scenes(0, [0], "test")
