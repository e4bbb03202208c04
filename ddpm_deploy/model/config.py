"""Strict reading of network configurations from plain JSON values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")


def from_dict(cls: type[Config], data: Mapping[str, Any]) -> Config:
    """Build the dataclass `cls` from JSON values; unknown and missing keys are refused, lists become tuples."""
    known = {field.name: field for field in fields(cls)}
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ValueError(f"{cls.__name__}: got unknown key {unknown[0]!r}, expected some of {', '.join(known)}")
    missing = [n for n, f in known.items() if n not in data and f.default is MISSING and f.default_factory is MISSING]
    if missing:
        raise ValueError(f"{cls.__name__}: {missing[0]!r} is missing")
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in data.items()})


def to_dict(config: DataclassInstance) -> dict[str, Any]:
    """The inverse of `from_dict`; tuples become lists."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items()}


def require_counts(config: object, *names: str) -> None:
    """Refuse any of these fields that is not a whole number of at least 1, or a tuple of such numbers."""
    for name in names:
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise ValueError(f"{name}: got {value!r}, expected whole numbers, at least 1")
