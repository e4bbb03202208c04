"""Settings of the service: flags, over the environment, over a file, over defaults."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddpm_deploy.cli import Parser

VARIABLES = "DDPM_DEPLOY_SERVE_"
TRUTH = {"true": True, "1": True, "false": False, "0": False}
CONFIG, PRINT = "config", "print_config"


@dataclass(frozen=True)
class Setting:
    """A value, and where it is from."""

    value: Any
    origin: str


class SettingsParser(Parser):
    """Takes an option from its flag, or else from DDPM_DEPLOY_SERVE_NAME, or else from the TOML file of `--config`."""

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: None = None
    ) -> argparse.Namespace:
        """Every option; leaves with exit code 2 where one is wrong, and 0 after `--print-config`."""
        given = self._flags(args)
        try:
            settings = self.settings(given, os.environ)
        except (ValueError, OSError) as error:
            self.error(f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error))
        if PRINT in given:
            print(shown(settings))
            self.exit()
        return argparse.Namespace(**{name: setting.value for name, setting in settings.items()})

    def settings(self, flags: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Setting]:
        """All but `--config` and `--print-config` themselves. Raises ValueError, OSError."""
        options = {action.dest: action for action in self._actions if action.dest not in ("help", CONFIG, PRINT)}
        settings = {name: Setting(action.default, "default") for name, action in options.items()}
        variables = {name: value for name, value in environment.items() if name.startswith(VARIABLES)}
        file = flags.get(CONFIG, variables.pop(VARIABLES + CONFIG.upper(), None))
        for key, value in _read(file).items() if file else ():
            action = options[_known(key, options, f"{file}: {key}")]
            settings[key] = Setting(_converted(action, value, f"{file}: {key}"), str(file))
        for variable, text in variables.items():
            name = variable.removeprefix(VARIABLES).lower()
            action = options[_known(name, options, variable, lambda near: VARIABLES + near.upper())]
            settings[name] = Setting(_converted(action, text, variable), variable)
        return settings | {name: Setting(value, "flag") for name, value in flags.items() if name in options}

    def _flags(self, args: Sequence[str] | None) -> dict[str, Any]:
        """What was given on the command line, and nothing else."""
        nothing = argparse.Namespace(**{action.dest: None for action in self._actions})
        given: argparse.Namespace = super().parse_args(args, nothing)
        return {name: value for name, value in vars(given).items() if value is not None}


def shown(settings: Mapping[str, Setting]) -> str:
    """A TOML file that holds the same, with where each is from."""
    lines = []
    for name, setting in settings.items():
        value = list(setting.value) if isinstance(setting.value, tuple) else setting.value
        text = f"# {name} is not set" if value is None else f"{name} = {json.dumps(value)}"
        lines.append(f"{text:<40} # {setting.origin}")
    return "\n".join(lines)


def _read(file: str) -> dict[str, Any]:
    with open(file, "rb") as stream:
        try:
            return tomllib.load(stream)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{file}: {error}") from None


def _known(name: str, options: Mapping[str, Any], where: str, spelled: Any = str) -> str:
    if name in options:
        return name
    near = difflib.get_close_matches(name.replace("-", "_"), options, 1)
    hint = f"did you mean {spelled(near[0])}?" if near else f"known are {', '.join(map(spelled, options))}"
    raise ValueError(f"{where}: there is no such setting; {hint}")


def _converted(action: argparse.Action, value: Any, where: str) -> Any:
    """A value as its flag would have it."""
    if action.nargs == 0:
        return _truth(value, where)
    if isinstance(value, list):
        value = ",".join(map(str, value))
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{where}: got {json.dumps(value, default=str)}, expected text or a number")
    kind: Any = action.type or str
    try:
        converted = kind(str(value))
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"{where}: {error}") from None
    except ValueError:
        raise ValueError(f"{where}: got {value!r}, expected {_expected(kind)}") from None
    if action.choices is not None and converted not in action.choices:
        raise ValueError(f"{where}: got {value!r}, expected one of {', '.join(map(str, action.choices))}")
    return converted


def _truth(value: Any, where: str) -> bool:
    if isinstance(value, str):
        value = TRUTH.get(value.lower(), value)
    if not isinstance(value, bool):
        raise ValueError(f"{where}: got {value!r}, expected true or false")
    return value


def _expected(kind: Any) -> str:
    return {int: "a whole number", float: "a number"}.get(kind, "another value")
