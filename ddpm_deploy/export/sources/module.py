"""Any torch module: `package.module:factory` or `path/to/file.py:factory`. This runs the user's own code."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ddpm_deploy.bundle import Defaults
from ddpm_deploy.errors import ExportError
from ddpm_deploy.export.sources.base import Settings, Source, default_solver
from ddpm_deploy.export.sources.diffusers_unet import check_shapes
from ddpm_deploy.export.sources.files import digest_of_weights, read_weights, require_finite

REFERENCE = re.compile(r"(?P<module>.+):(?P<factory>[A-Za-z_]\w*)")
SAID = ("sample_shape", "schedule", "prediction", "variance", "clip", "output", "conditions")
USES = (*SAID, "factory_options", "weights")
NEEDED = ("sample_shape", "schedule", "prediction", "output")
EXTRA = ("defaults", "name", "provenance", "spec")


def is_reference(where: str) -> bool:
    """Whether a text reads `module:factory` or `file.py:factory`."""
    match = REFERENCE.fullmatch(where)
    if match is None:
        return False
    module = match["module"]
    return module.endswith(".py") or all(part.isidentifier() for part in module.split("."))


def read_module(where: str, settings: Settings) -> Source:
    """Call the factory with `settings.factory_options`.

    It returns a module, a `Source`, or (module, mapping): the mapping says what settings say, and beside that
    `defaults` (a `bundle.Defaults`), `name`, `provenance` and `spec`. Settings overrule it.
    """
    settings.require_only(USES, "a module")
    made = call_factory(where, settings.factory_options)
    if isinstance(made, Source):
        settings.require_only(("factory_options",), "a factory that returns a Source")
        return made
    module, said = made if isinstance(made, tuple) and len(made) == 2 else (made, {})
    if not isinstance(module, nn.Module) or not isinstance(said, Mapping):
        raise ExportError(f"{where}: got a {type(made).__name__}, expected an nn.Module, a Source or (module, mapping)")
    digest = _load(module, settings)
    provenance = {"source": "module", "factory": _public_name(where), **digest, **said.get("provenance", {})}
    return _source(where, module.eval(), said, settings, provenance)


def _source(
    where: str, module: nn.Module, said: Mapping[str, Any], settings: Settings, provenance: dict[str, Any]
) -> Source:
    unknown = sorted(set(said) - set(SAID) - set(EXTRA))
    if unknown:
        raise ExportError(f"{where}: the mapping holds {unknown[0]!r}, expected some of {', '.join(SAID + EXTRA)}")
    try:
        own = Settings(**{name: said[name] for name in SAID if name in said})
    except ValueError as error:
        raise ExportError(f"{where}: {error}") from None
    merged = {name: getattr(settings, name) for name in SAID}
    merged = {name: getattr(own, name) if value is None else value for name, value in merged.items()}
    missing = [name for name in NEEDED if merged[name] is None]
    if missing:
        raise ExportError(f"{where}: nothing says {', '.join(missing)}; give them, or return them beside the module")
    schedule, defaults = merged["schedule"], said.get("defaults")
    if defaults is not None and not isinstance(defaults, Defaults):
        raise ExportError(f"{where}: defaults: got a {type(defaults).__name__}, expected ddpm_deploy.bundle.Defaults")
    return Source(
        sample_shape=merged["sample_shape"],
        schedule=schedule,
        prediction=merged["prediction"],
        variance=merged["variance"] or "small",
        clip=None if merged["clip"] == "none" else merged["clip"],
        output=merged["output"],
        conditions=merged["conditions"] or (),
        defaults=defaults or default_solver(schedule),
        name=str(said.get("name", where.rsplit(":", 1)[-1])),
        provenance=provenance,
        network=module,
        spec=said.get("spec"),
    )


def call_factory(where: str, options: Mapping[str, Any]) -> Any:
    """What `package.module:factory` or `file.py:factory` makes of these arguments."""
    match = REFERENCE.fullmatch(where)
    if match is None or not is_reference(where):
        raise ExportError(f"{where}: expected package.module:factory or path/to/file.py:factory")
    factory = getattr(_import(match["module"]), match["factory"], None)
    if not callable(factory):
        raise ExportError(f"{where}: {match['module']} has no function {match['factory']}")
    try:
        return factory(**options)
    except (Exception, SystemExit) as error:  # the user's own code
        what = f"{type(error).__name__}: {error}"
        raise ExportError(f"{where}: cannot be called with {dict(options)}: {what}") from error


def _import(name: str) -> Any:
    try:
        return _import_file(Path(name)) if name.endswith(".py") else _import_name(name)
    except ExportError:
        raise
    except Exception as error:  # the user's own code
        what = f"{type(error).__name__}: {error}"
        raise ExportError(f"{name}: cannot be imported: {what}; run where it can, or give a file's path") from error


def _import_name(name: str) -> Any:
    """As `python -m` would find it: the working directory counts."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    return importlib.import_module(name)


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise ExportError(f"{path}: is no file; expected path/to/file.py:factory")
    name = f"ddpm_deploy_source_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up there
    spec.loader.exec_module(module)
    return module


def _load(module: nn.Module, settings: Settings) -> dict[str, str]:
    """Load the weights that were asked for, and refuse a module with NaN."""
    if settings.weights is None:
        require_finite(dict(module.state_dict()), "network")
        return {}
    path = Path(settings.weights)
    state = read_weights(path)
    check_shapes(module, state, path)
    module.load_state_dict(state)
    return {"weights": path.name, "weights_sha256": digest_of_weights(path)}


def _public_name(where: str) -> str:
    """The reference without the folders of this machine."""
    return where.rsplit("/", 1)[-1]
