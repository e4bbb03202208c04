"""Arguments of a command line as the values that they stand for."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_deploy.job import RESERVED


def size(text: str) -> tuple[int, int]:
    """`64x48`."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected HxW, such as 64x48")
    return int(height), int(width)


def interval(text: str) -> tuple[float, float]:
    """`100,800`."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected LOW,HIGH, such as 100,800") from None
    return low, high


def part(text: str) -> tuple[int, int]:
    """`2/8`: the second of eight parts."""
    own, _, parts = text.partition("/")
    if not (own.isdecimal() and parts.isdecimal() and 1 <= int(own) <= int(parts)):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected I/N with I from 1 to N, such as 1/4")
    return int(own), int(parts)


def array(path: Path | None) -> Any:
    """A .npy file of numbers; ValueError for anything else."""
    if path is None:
        return None
    try:
        loaded = np.load(path, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # a damaged archive raises half a dozen kinds
        raise ValueError(f"{path}: not a .npy file of numbers ({error})") from None
    if not isinstance(loaded, np.ndarray):
        raise ValueError(f"{path}: not a .npy file of numbers (it is an archive)")
    return loaded


def lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank; ValueError where there are none."""
    try:
        found = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8 ({error})") from None
    if not any(found):
        raise ValueError(
            f"{path}: got no line with anything in it, expected one for each sample, or to be taken in turn"
        )
    return [line for line in found if line]


def conditions(pairs: Sequence[str]) -> dict[str, Any]:
    """Arrays by name, of `NAME=FILE.npy`."""
    return {name: array(Path(value)) for name, value in (_pair("--condition", each) for each in pairs)}


def solver_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Values by name, of `NAME=VALUE`."""
    options = {name: _value(text) for name, text in (_pair("--option", each) for each in pairs)}
    for name in RESERVED & options.keys():
        raise ValueError(f"--option {name}: not an option of a solver; give --{name}")
    return options


def _pair(flag: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ValueError(f"{flag}: got {text!r}, expected NAME=VALUE")
    return name, value


def _value(text: str) -> Any:
    """A number, true, false or null as in JSON; anything else is a string."""
    try:
        return json.loads(text)
    except ValueError:
        return text
