"""Labels as a person writes them: by the names of the classes, or by their numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.bundle import Condition, Manifest

NONE = "none"


def labels_of(text: str, manifest: Manifest, n: int) -> tuple[str, NDArray[np.int64]]:
    """The condition that has classes, and n labels of it: those named, in turn.

    text: names or numbers with commas between; "none" is no label, where the model can do without. Raises ValueError.
    """
    known = [condition for condition in manifest.conditions if condition.classes is not None and not condition.shape]
    if len(known) != 1:
        names = ", ".join(condition.name for condition in manifest.conditions) or "none"
        raise ValueError(f"label: got {text!r}, but the bundle has no one condition with classes; it has {names}")
    numbers = [_number(word.strip(), known[0]) for word in text.split(",")]
    return known[0].name, np.resize(np.array(numbers, np.int64), n)


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
