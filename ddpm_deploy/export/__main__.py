"""`python -m ddpm_deploy.export SOURCE --out BUNDLE`."""

from __future__ import annotations

import json as json_text
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_deploy.cli import require_writable, run_command
from ddpm_deploy.errors import DdpmDeployError, ParityError
from ddpm_deploy.export import recipe as recipes
from ddpm_deploy.export.deploy import Places, deploy
from ddpm_deploy.export.flags import build_parser, recipe_values
from ddpm_deploy.export.only_page import is_bundle, write_only_page
from ddpm_deploy.export.onnxruntime_web import runtime_files
from ddpm_deploy.export.targets import TRITON, WEB
from ddpm_deploy.parity.report import pyplot

if TYPE_CHECKING:
    from ddpm_deploy.export.pipeline import Exported

OVER_BUDGET = 1
SHOWN_LAYERS = 8  # --json has all


def run(**given: Any) -> int:
    """Export and print what was written; 1 when parity is over budget."""
    values = recipe_values(given)
    if is_bundle(values.get("path")):
        return write_only_page(given)
    recipe = recipes.make_recipe(values, str(given.get("recipe", "flags")))
    if given.get("print_recipe"):
        print(recipes.to_toml(recipes.effective(values)), end="")
        return 0
    if recipe.path is None:
        raise ValueError("SOURCE: got none, expected a model to export, here or as path in the recipe")
    if "out" not in given:
        raise ValueError("--out: got none, expected the bundle folder to write")
    recipe = replace(recipe, export=replace(recipe.export, progress=not given.get("quiet", False)))
    if "plot" in given:
        if given["plot"].suffix != ".png":
            raise ValueError(f"--plot: got {given['plot']}, expected a name that ends in .png")
        require_writable(given["plot"])
        pyplot()
    for name, target in (("triton_out", TRITON), ("web_out", WEB), ("onnxruntime_web", WEB)):
        if name in given and target not in recipe.export.targets:
            raise ValueError(f"--{name.replace('_', '-')}: of no use without --target {target}")
    places = _places(given, recipe.export.targets)
    from ddpm_deploy.export.api import export_recipe  # torch takes seconds to import: not for --help

    try:
        exported = export_recipe(recipe, given["out"])
    except ParityError as error:
        print(f"ddpm-deploy export: error: {error}", file=sys.stderr)
        return OVER_BUDGET
    if "plot" in given:
        _plot(exported, given["plot"])
    try:
        notes = list(deploy(exported.bundle, recipe.export, places))
    except DdpmDeployError as error:
        written = f"the bundle {given['out']} was written ({exported.bundle.digest})"
        raise type(error)(f"{error}; {written}, what follows it was not") from error
    print(_as_json(exported, notes) if given.get("json") else "\n".join([_as_text(exported), *notes]))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_command(build_parser(), run, argv)


def _places(given: dict[str, Any], targets: Sequence[str]) -> Places:
    """Where to write; what a page needs is fetched first, so that long work is not in vain."""
    beside = Places.beside(given["out"].resolve())  # while it is there: the working directory may be what is replaced
    return Places(
        given.get("triton_out", beside.triton),
        given.get("web_out", beside.web),
        runtime_files(given.get("onnxruntime_web")) if WEB in targets else None,
    )


def _plot(exported: Exported, path: Path) -> None:
    from ddpm_deploy.parity.next_state import plot

    curves = {name: verdict.curve for name, verdict in exported.verdicts.items() if verdict.curve is not None}
    budgets = {name: verdict.budget for name, verdict in exported.verdicts.items() if verdict.budget is not None}
    plot(curves, budgets, path, exported.bundle.manifest.model.name)


def _as_json(exported: Exported, notes: Sequence[str]) -> str:
    bundle = exported.bundle
    files = [
        {"path": f.path, "size_bytes": f.size_bytes, "sha256": f.sha256}
        | {key: getattr(f, key) for key in ("parity", "measured_on", "over_budget") if hasattr(f, key)}
        for f in bundle.manifest.all_files
    ]
    layers = {name: [vars(layer) for layer in table] for name, table in exported.layers.items()}
    return json_text.dumps(
        {"bundle": str(bundle.root), "digest": bundle.digest, "files": files, "layers": layers, "notes": notes},
        indent=1,
    )


def _as_text(exported: Exported) -> str:
    from ddpm_deploy.export.sensitivity import render

    bundle = exported.bundle
    width = max(len(file.path) for file in bundle.manifest.all_files) + 2
    lines = [str(bundle.root)]
    for file in bundle.manifest.all_files:
        verdict = exported.verdicts.get(file.path)
        lines.append(f"{file.path:<{width}}{file.size_bytes / 2**20:9.2f} MiB  {_figures(verdict)}".rstrip())
        lines += [f"  OVER BUDGET: {failure}" for failure in (verdict.failures if verdict else ())]
    for name, table in exported.layers.items():
        kept = sum(layer.kept_float for layer in table)
        lines.append(f"\n{name}: {len(table) - kept} of {len(table)} layers in int8, the costliest alone:")
        lines.append(render(table[:SHOWN_LAYERS]))
    return "\n".join([*lines, bundle.digest])


def _figures(verdict: Any) -> str:
    if verdict is None:
        return ""
    shown = {
        "relative_l2": "relative L2 {:.1e}",
        "next_state_rms": "next state {:.1e}",
        "final_max_abs": "final {:.1e}",
        "final_psnr_db": "{:.0f} dB",
    }
    return ", ".join(text.format(verdict.parity[key]) for key, text in shown.items() if key in verdict.parity)


if __name__ == "__main__":
    raise SystemExit(main())
