"""`export BUNDLE --target web --out PAGE`: the page of a bundle that is there already; nothing is exported again."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import Any

from ddpm_deploy.bundle import read_bundle
from ddpm_deploy.bundle.manifest import MANIFEST_NAME
from ddpm_deploy.bundle.read import PACKAGED
from ddpm_deploy.export.deploy import page
from ddpm_deploy.export.onnxruntime_web import runtime_files
from ddpm_deploy.export.targets import WEB

KEYS = {"source", "out", "export.targets", "export.precisions", "onnxruntime_web", "quiet", "json"}


def is_bundle(where: object) -> bool:
    """Whether a source is a bundle's folder, or the name of one of this package."""
    if not isinstance(where, str):
        return False
    return (Path(where) / MANIFEST_NAME).is_file() or (where in PACKAGED and not Path(where).exists())


def write_only_page(given: dict[str, Any]) -> int:
    """Write the page and print where it is. given: the command's arguments."""
    source, precisions = given.get("source"), given.get("export.precisions", ("fp32",))
    if source is None or given.get("export.targets") != (WEB,):
        raise ValueError(f"SOURCE: {source or 'path'} is a bundle, of which only --target {WEB} can be made")
    if unused := sorted(set(given) - KEYS):
        flag = unused[0].rpartition(".")[2].replace("_", "-")
        raise ValueError(f"--{flag}: of no use with a bundle, which is not exported again; leave it out")
    if "out" not in given:
        raise ValueError("--out: got none, expected the folder of the page to write")
    if len(precisions) != 1:
        raise ValueError(f"--precision: got {', '.join(precisions)}, expected one for a page")
    runtime = runtime_files(given.get("onnxruntime_web"))
    notes = list(page(read_bundle(source), given["out"], runtime, precisions[0]))
    print(json_text.dumps({"page": str(given["out"]), "notes": notes}) if given.get("json") else "\n".join(notes))
    return 0
