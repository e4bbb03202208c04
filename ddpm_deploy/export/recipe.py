"""Recipes: one export written down in TOML, so that it can be repeated, reviewed and varied by flags."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ddpm_deploy import strict
from ddpm_deploy.export.options import Options
from ddpm_deploy.export.sources.base import Settings
from ddpm_deploy.solvers import SOLVERS
from ddpm_deploy.spacing import SPACINGS

MAX_RECIPE_BYTES = 2**20

Values = dict[str, Any]


@dataclass(frozen=True)
class ModelText:
    """What the bundle says of the model; None keeps what the source says."""

    name: str | None = None
    version: str = "1"
    licence: str = "unspecified"


@dataclass(frozen=True)
class DefaultPlan:
    """The plan that samplers of the bundle use when they are told nothing; None keeps what the source says."""

    solver: str | None = None
    steps: int | None = None
    spacing: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, known in (("solver", SOLVERS), ("spacing", SPACINGS)):
            value = getattr(self, name)
            if value is not None and value not in known:
                raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(known)}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps: got {self.steps}, expected at least 1")


@dataclass(frozen=True)
class EncoderSource:
    """A module that turns raw inputs into conditions, once per request.

    path: `package.module:factory`, or an ONNX file. inputs: what it takes, by position: name, shape without the batch,
    dtype. condition: the name of the model's condition that it computes, or a list of names. tokenizer: kind,
    vocabulary and length, where the input `tokens` is to be made from a prompt, see `ddpm_deploy.tokenizer`.
    """

    path: str
    condition: str | tuple[str, ...]
    inputs: tuple[Mapping[str, Any], ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Recipe:
    """An export. path: where the model is, see `sources.open_source`. source: what has to be said about it."""

    path: str | None = None
    source: Settings = field(default_factory=Settings)
    model: ModelText = field(default_factory=ModelText)
    plan: DefaultPlan = field(default_factory=DefaultPlan)
    export: Options = field(default_factory=Options)
    encoder: EncoderSource | None = None


def _strictly(cls: Any) -> Callable[[Values], Any]:
    return lambda values: strict.from_dict(cls, values, "section")


SECTIONS: dict[str, Callable[[Values], Any]] = {
    "source": Settings.from_mapping,
    "model": _strictly(ModelText),
    "plan": _strictly(DefaultPlan),
    "export": _strictly(Options),
    "encoder": _strictly(EncoderSource),
}


def read_recipe(path: str | os.PathLike[str]) -> Values:
    """The values of a TOML file, to be changed by flags before `make_recipe`; raises ValueError with the line."""
    with open(path, "rb") as stream:
        data = stream.read(MAX_RECIPE_BYTES + 1)
    if len(data) > MAX_RECIPE_BYTES:
        raise ValueError(f"{path}: is larger than {MAX_RECIPE_BYTES} bytes; it is no recipe")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is no TOML: {error}") from None


def set_value(values: Values, key: str, value: Any) -> None:
    """Set `section.name` in the values of a recipe."""
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ValueError(f"{key}: {section} is a value, expected a section; leave the rest of its name out")
    values[name] = value


def parse_assignment(text: str) -> tuple[str, Any]:
    """`section.name=VALUE`, with a TOML value or a bare word."""
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not all(key.split(".")):
        raise ValueError(f"--set: got {text!r}, expected SECTION.NAME=VALUE")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value
    except (ValueError, RecursionError) as error:  # numbers and lists beyond all sense
        raise ValueError(f"--set: {key}: is no TOML value: {error}") from None


def make_recipe(values: Mapping[str, Any], name: str = "recipe") -> Recipe:
    """Check the values of a recipe; ValueError names the section and key at fault. name: for messages."""
    unknown = sorted(set(values) - {"path", *SECTIONS})
    if unknown:
        raise ValueError(f"{name}: got {unknown[0]!r}, expected some of path, {', '.join(SECTIONS)}")
    if not isinstance(values.get("path", ""), str):
        raise ValueError(f"{name}: path: got {values['path']!r}, expected a text")
    sections = {key: _section(values[key], key, name) for key in SECTIONS if key in values}
    return Recipe(path=values.get("path"), **sections)


def effective(values: Mapping[str, Any]) -> Values:
    """The values with every default that is not empty filled in, in the order of the sections."""
    make_recipe(values)
    full: Values = {"path": values["path"]} if "path" in values else {}
    for key, cls in (("source", Settings), ("model", ModelText), ("plan", DefaultPlan), ("export", Options)):
        defaults = {member.name: getattr(cls(), member.name) for member in fields(cls)}
        full[key] = {n: v for n, v in {**defaults, **values.get(key, {})}.items() if v is not None and v != {}}
    return full | ({"encoder": values["encoder"]} if "encoder" in values else {})


def to_toml(values: Mapping[str, Any]) -> str:
    """The text that `read_recipe` takes."""
    import tomli_w

    return tomli_w.dumps(_listed(values))


def _section(values: Any, key: str, name: str) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"{name}: {key}: got {values!r}, expected a section")
    try:
        return SECTIONS[key](values)
    except ValueError as error:
        raise ValueError(f"{name}: {key}: {str(error).removeprefix('section: ')}") from None


def _listed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, tuple | list) else value
