"""What an evaluation has found so far, kept beside its output, so that it goes on where it was stopped."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDER, KEY = "state", "key.json"
SAVE_EVERY_S = 5.0

Array = NDArray[Any]
Key = Mapping[str, Any]


class State:
    """Arrays by name. Written at most every few seconds, each file as a whole or not at all.

    folder: None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._saved_at = time.monotonic()

    @classmethod
    def open(cls, out: Path | None, key: Key, restart: bool = False) -> State:
        """The state of an output folder; ValueError where it was made with another key, unless it is to be discarded.

        key: everything that the figures depend on, as plain JSON.
        """
        if out is None:
            return cls(None)
        folder = out / FOLDER
        if restart:
            shutil.rmtree(folder, ignore_errors=True)
        key = json.loads(json.dumps(key))
        if (folder / KEY).exists():
            _check_key(json.loads((folder / KEY).read_text(encoding="utf-8")), key, folder)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / KEY).write_text(json.dumps(key, indent=1), encoding="utf-8")
        return cls(folder)

    def load(self, name: str) -> dict[str, Array] | None:
        """What was saved under a name, or None."""
        path = self._path(name)
        if path is None or not path.exists():
            return None
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}

    def save(self, name: str, arrays: Mapping[str, Array], *, last: bool = False) -> None:
        """Keep arrays, unless some were kept a moment ago. last: keep them in any case."""
        path = self._path(name)
        if path is None or not (last or time.monotonic() > self._saved_at + SAVE_EVERY_S):
            return
        new = path.with_suffix(".new")
        with new.open("wb") as file:
            np.savez(file, **dict(arrays))  # type: ignore[arg-type]
        os.replace(new, path)
        self._saved_at = time.monotonic()

    def _path(self, name: str) -> Path | None:
        safe = "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in name)
        return None if self._folder is None else self._folder / f"{safe}.npz"


def _check_key(found: Any, key: Key, folder: Path) -> None:
    names = [name for name in sorted(key) if found.get(name) != key[name]]
    if names:
        old, new = (json.dumps(part.get(names[0])) for part in (found, key))
        raise ValueError(
            f"{folder}: was made with another {names[0]}: {old}, now {new}; give --restart to discard it, "
            "or another --out"
        )
