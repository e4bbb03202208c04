"""Strict JSON: every value is checked for type and range, and every complaint names the field."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from ddpm_deploy.errors import BundleError

Value = TypeVar("Value")

MAX_JSON_BYTES = 64 * 2**20
MAX_INTEGER = 2**64 - 1
MAX_DEPTH = 16
MAX_TEXT = 10_000


def load_json(data: bytes, source: str) -> Any:
    """Parse UTF-8 JSON without duplicate keys, NaN, infinities, over-long integers or lone surrogates.

    source: the file's name, for messages. Raises BundleError.
    """
    if len(data) > MAX_JSON_BYTES:
        raise BundleError(f"{source}: got {len(data)} bytes, expected at most {MAX_JSON_BYTES}; it is no bundle")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_integer,
        )
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise BundleError(f"{source}: nested too deeply; it is no bundle") from None
    except ValueError as error:  # bad UTF-8, bad JSON, and what the hooks refuse
        raise BundleError(f"{source}: {error}; the file is damaged, copy or export it again") from None
    return value


class Fields:
    """The members of one JSON object; missing and unknown keys are refused at once.

    where: path of the object for messages, such as `bundle.json: output`. defaults: of the keys that may be missing.
    """

    def __init__(self, value: Any, where: str, keys: Sequence[str], defaults: Mapping[str, Any] | None = None) -> None:
        self.where = where
        self.values: dict[str, Any] = {**(defaults or {}), **mapping(value, where)}
        missing = [key for key in keys if key not in self.values]
        unknown = [key for key in self.values if key not in keys]
        if missing:
            raise BundleError(f"{where}: {missing[0]!r} is missing; export the model again")
        if unknown:
            raise BundleError(f"{where}: unknown key {shorten(unknown[0])}, expected one of {', '.join(keys)}")

    def take(self, key: str, check: Callable[..., Value], *args: Any) -> Value:
        """The member `key`, passed through `check(value, where, *args)`."""
        return check(self.values[key], f"{self.where}{'.' if ': ' in self.where else ': '}{key}", *args)


def mapping(value: Any, where: str) -> dict[str, Any]:
    """A JSON object."""
    if not isinstance(value, dict):
        raise refuse(where, value, "an object")
    return value


def free(value: Any, where: str, depth: int = MAX_DEPTH) -> Any:
    """Any JSON value, nested at most `depth` deep."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if children and depth == 0:
        raise BundleError(f"{where}: nested more than {MAX_DEPTH} deep; make it flatter")
    for child in children:
        free(child, where, depth - 1)
    return value


def free_mapping(value: Any, where: str) -> dict[str, Any]:
    """A JSON object with any members."""
    return mapping(free(value, where), where)


def text(value: Any, where: str, pattern: str | None = None) -> str:
    """A string; with a pattern (a regular expression) one that matches it as a whole."""
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise refuse(where, value, f"a text of at most {MAX_TEXT} characters")
    if pattern is not None and not re.fullmatch(pattern, value):
        raise refuse(where, value, f"a text like {pattern}")
    return value


def choice(value: Any, where: str, choices: Sequence[str]) -> str:
    """One of the given texts."""
    if not isinstance(value, str) or value not in choices:
        raise refuse(where, value, f"one of {', '.join(choices)}")
    return value


def whole(value: Any, where: str, low: int, high: int) -> int:
    """A whole number in [low, high]."""
    if type(value) is not int or not low <= value <= high:
        raise refuse(where, value, f"a whole number in [{low}, {high}]")
    return value


def number(value: Any, where: str) -> float:
    """A finite number."""
    if type(value) not in (int, float):
        raise refuse(where, value, "a number")
    return float(value)


def sequence(value: Any, where: str, check: Callable[..., Value], *args: Any) -> tuple[Value, ...]:
    """A JSON array whose every element passes `check`."""
    if not isinstance(value, list):
        raise refuse(where, value, "a list")
    return tuple(check(item, f"{where}[{i}]", *args) for i, item in enumerate(value))


def optional(value: Any, where: str, check: Callable[..., Value], *args: Any) -> Value | None:
    """null, or what `check` accepts."""
    return None if value is None else check(value, where, *args)


def distinct(names: Sequence[str], where: str, what: str) -> None:
    """Refuse a name that occurs twice."""
    seen: set[str] = set()
    for i, name in enumerate(names):
        if name in seen:
            raise BundleError(f"{where}[{i}]: the {what} {shorten(name)} occurs twice; export the model again")
        seen.add(name)


def refuse(where: str, value: Any, expected: str) -> BundleError:
    """The error for a value that is not what it should be."""
    return BundleError(f"{where}: got {shorten(value)}, expected {expected}; export the model again")


def shorten(value: Any, limit: int = 80) -> str:
    """The value as one short line for a message."""
    if isinstance(value, dict | list) and len(value) > 8:
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)} members"
    line = repr(value)
    return line if len(line) <= limit else line[: limit - 3] + "..."


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for key, value in pairs:
        if key in members:
            raise ValueError(f"the key {shorten(key)} occurs twice")
        members[key] = value
    return members


def _no_constant(name: str) -> Any:
    raise ValueError(f"got {name}, expected finite numbers")


def _finite(literal: str) -> float:
    value = float(literal)
    if not math.isfinite(value):
        raise ValueError(f"the number {shorten(literal)} is out of range")
    return value


def _integer(literal: str) -> int:
    value = int(literal) if len(literal) <= len(str(MAX_INTEGER)) + 1 else MAX_INTEGER + 1
    if abs(value) > MAX_INTEGER:
        raise ValueError(f"the number {shorten(literal)} is out of range")
    return value
