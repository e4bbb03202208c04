"""Protobuf messages as text, without the protobuf package."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


class Word(str):
    """A value that is written without quotes: one of an enumeration."""


def to_text(message: Mapping[str, Any]) -> str:
    """The text of a message: a mapping is a message inside, a tuple a repeated one, a list a repeated number."""
    return "\n".join(_lines(message, "")) + "\n"


def _lines(message: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, value in message.items():
        if isinstance(value, tuple):
            for item in value:
                yield from _lines({name: item}, indent)
        elif isinstance(value, Mapping):
            yield f"{indent}{name} {{"
            yield from _lines(value, indent + "  ")
            yield f"{indent}}}"
        else:
            yield f"{indent}{name}: {value if isinstance(value, Word) else json.dumps(value)}"
