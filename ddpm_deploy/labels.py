"""Labels as a person writes them: by the names of the classes, or by their numbers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.bundle import Condition, Manifest

NONE = "none"


def labels_of(text: str, manifest: Manifest, n: int) -> tuple[str, NDArray[np.int64]]:
    """The condition that has classes, and n labels of it: those named, in turn.

    text: at most n names or numbers with commas between, so that a class with a comma in its name goes by its number;
    "none" is no label, where the model can do without. Raises ValueError.
    """
    name, numbers = label_numbers(text.split(","), manifest)
    if len(numbers) > n:
        raise ValueError(
            f"label: got {len(numbers)} labels for {n} of n; ask for as many pictures, or for fewer labels"
        )
    return name, np.resize(numbers, n)


def label_numbers(words: Iterable[str], manifest: Manifest) -> tuple[str, NDArray[np.int64]]:
    """The condition that has classes, and the number of each label; ValueError."""
    words = [word.strip() for word in words]
    condition = labelled(manifest)
    if condition is None:
        names = ", ".join(condition.name for condition in manifest.conditions) or "none"
        hint = "give a prompt" if manifest.tokenizer is not None else f"its conditions: {names}"
        raise ValueError(f"label: got {','.join(words[:10])!r}, but the model has no classes to choose from; {hint}")
    return condition.name, np.array([_number(word, condition) for word in words], np.int64)


def labelled(manifest: Manifest) -> Condition | None:
    """The one condition that has classes, if there is one."""
    known = [condition for condition in manifest.conditions if condition.classes is not None and not condition.shape]
    return known[0] if len(known) == 1 else None


def _number(word: str, condition: Condition) -> int:
    classes = condition.classes or ()
    if word in classes:
        return classes.index(word)
    if word.isdecimal() and int(word) < len(classes):
        return int(word)
    if word == NONE and condition.null is not None:
        return int(condition.null)
    shown = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
    raise ValueError(f"label: got {word!r}, expected one of {shown}, or a number from 0 to {len(classes) - 1}")
