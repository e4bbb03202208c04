"""Scenes in words."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ddpm_deploy.shapes.scene import COLOURS, RELATIONS, SHAPES, Scenes, uniforms

ARTICLES = ("a", "a", "the", "one", "")
OPENINGS = ("", "", "", "a picture of", "a drawing of")
WORDINGS = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
}
STREAM = 1 << 32  # keeps the wordings apart from the scenes of the same seed

_COLOUR_NAMES = tuple(COLOURS)


def plain_captions(scenes: Scenes) -> list[str]:
    """One wording for each scene, such as "a red circle left of a blue square"."""
    return [_sentence(scenes, i, "", ("a", "a"), RELATIONS[scenes.relation[i]]) for i in range(len(scenes))]


def captions(scenes: Scenes, seed: int, indices: ArrayLike) -> list[str]:
    """A wording at random for each scene, as a function of (seed, index)."""
    u = uniforms(seed + STREAM, indices, 4)
    return [_worded(scenes, i, row) for i, row in enumerate(u)]


def vocabulary() -> list[str]:
    """Every word of every caption, sorted."""
    phrases = [*ARTICLES, *OPENINGS, *COLOURS, *SHAPES, *(phrase for each in WORDINGS.values() for phrase in each)]
    return sorted({word for phrase in phrases for word in phrase.split()})


def _worded(scenes: Scenes, i: int, u: np.ndarray) -> str:
    relation = RELATIONS[scenes.relation[i]]
    wording = _pick(WORDINGS[relation], u[3]) if relation in WORDINGS else relation
    return _sentence(scenes, i, _pick(OPENINGS, u[0]), (_pick(ARTICLES, u[1]), _pick(ARTICLES, u[2])), wording)


def _sentence(scenes: Scenes, i: int, opening: str, articles: tuple[str, str], wording: str) -> str:
    parts = [opening, articles[0], _COLOUR_NAMES[scenes.colour[i, 0]], SHAPES[scenes.shape[i, 0]]]
    if scenes.relation[i]:
        parts += [wording, articles[1], _COLOUR_NAMES[scenes.colour[i, 1]], SHAPES[scenes.shape[i, 1]]]
    return " ".join(filter(None, parts))


def _pick(choices: tuple[str, ...], u: float) -> str:
    return choices[int(u * len(choices))]
