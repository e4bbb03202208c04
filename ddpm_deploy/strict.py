"""Strict reading of configurations (networks, recipes) from plain JSON or TOML values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")


def from_dict(cls: type[Config], data: Mapping[str, Any], where: str | None = None) -> Config:
    """Build the dataclass `cls` from JSON values; lists become tuples.

    where: for messages, None is the class. Unknown and missing keys and values of another type than the annotated one
    raise ValueError; of the types there may be `tuple[X, ...]`, `X | None`, mappings and plain ones.
    """
    where = where or cls.__name__
    known = {field.name: field for field in fields(cls)}
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ValueError(f"{where}: got unknown key {unknown[0]!r}, expected some of {', '.join(known)}")
    missing = [n for n, f in known.items() if n not in data and f.default is MISSING and f.default_factory is MISSING]
    if missing:
        raise ValueError(f"{where}: {missing[0]!r} is missing")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    kinds = get_type_hints(cls)
    for name, value in values.items():
        if not _fits(value, kinds[name]):
            raise ValueError(f"{where}: {name}: got {value!r}, expected {known[name].type}")
    return cls(**values)


def to_dict(config: DataclassInstance) -> dict[str, Any]:
    """The inverse of `from_dict`; tuples become lists."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items()}


def _fits(value: object, kind: Any) -> bool:
    """Whether a value is of an annotated type; a whole number will do for a float, true and false for neither."""
    if get_origin(kind) in (Union, UnionType):
        return any(_fits(value, choice) for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(kind)[0]) for item in value)
    if kind in (int, float):
        return type(value) is int or type(value) is kind
    return kind is Any or isinstance(value, get_origin(kind) or kind)


def require_counts(config: object, *names: str, most: int | None = None) -> None:
    """Refuse any of these fields that is not a whole number of at least 1, or a tuple of such numbers.

    most: the greatest that such a number may be.
    """
    for name in names:
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise ValueError(f"{name}: got {value!r}, expected whole numbers, at least 1")
            if most is not None and number > most:
                raise ValueError(f"{name}: got {value!r}, expected at most {most}")
