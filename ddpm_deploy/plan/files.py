"""A plan as JSON or npz, without loss."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ddpm_deploy.plan.plan import Plan

PLAN_FORMAT = "ddpm-deploy plan"
PLAN_VERSION = 1
MAX_BYTES = 2**26
FIELDS = ("solver", "state", "t", "predict", "clip", "update", "log_variance")


def to_json(plan: Plan) -> str:
    """An infinite clip bound is written as null."""
    tables = {
        "t": plan.t.tolist(),
        "predict": plan.predict.tolist(),
        "clip": [[None if np.isinf(bound) else bound for bound in row] for row in plan.clip.tolist()],
        "update": plan.update.tolist(),
        "log_variance": None if plan.log_variance is None else plan.log_variance.tolist(),
    }
    return json.dumps(_head(plan) | tables)


def fields_from_json(text: str | bytes) -> dict[str, Any]:
    """The fields of a plan, not yet checked for their numbers."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"plan: not JSON ({error})") from None
    return _fields(data)


def save(plan: Plan, path: Path) -> None:
    """Write `.json` or `.npz`, by the file's ending."""
    if _ending(path) == ".json":
        path.write_text(to_json(plan))
        return
    tables = {name: getattr(plan, name) for name in FIELDS[2:] if getattr(plan, name) is not None}
    with path.open("wb") as file:
        np.savez(file, head=np.array(json.dumps(_head(plan))), **tables)


def load_fields(path: Path) -> dict[str, Any]:
    """What `save` wrote; never unpickles."""
    if _ending(path) == ".json":
        return fields_from_json(_read(path))
    content = io.BytesIO(_read(path))
    try:
        _check_size(content)
        with np.load(content, allow_pickle=False) as file:
            tables = {name: file[name] for name in file.files}
        head = json.loads(str(tables.pop("head", "{}")))
    except Exception as error:  # a damaged archive raises half a dozen kinds, OSError among them
        raise ValueError(f"{path}: not a plan file ({error}); save it again") from None
    return _fields({"log_variance": None} | head | tables if isinstance(head, dict) else head)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path}: got more than {MAX_BYTES} bytes; it is no plan file")
    return data


def _check_size(content: io.BytesIO) -> None:
    """Refuse an archive that would unpack to more than it should, before anything is unpacked."""
    with zipfile.ZipFile(content) as archive:
        total = sum(member.file_size for member in archive.infolist())
    if total > MAX_BYTES:
        raise ValueError(f"unpacks to {total} bytes, expected at most {MAX_BYTES}")


def _head(plan: Plan) -> dict[str, Any]:
    return {"format": PLAN_FORMAT, "format_version": PLAN_VERSION, "solver": plan.solver, "state": list(plan.state)}


def _fields(data: Any) -> dict[str, Any]:
    if not isinstance(data, dict) or data.get("format") != PLAN_FORMAT:
        raise ValueError(f"plan: expected a file with format {PLAN_FORMAT!r}; save it with Plan.save")
    if data.get("format_version") != PLAN_VERSION:
        raise ValueError(f"plan: got format version {data.get('format_version')}, expected {PLAN_VERSION}")
    body = {name: value for name, value in data.items() if name not in ("format", "format_version")}
    if set(body) != set(FIELDS):
        missing, unknown = sorted(set(FIELDS) - set(body)), sorted(set(body) - set(FIELDS))
        raise ValueError(f"plan: missing fields {missing}, unknown fields {unknown}")
    names = body["state"]
    if not isinstance(body["solver"], str) or not isinstance(names, list | tuple):
        raise ValueError("plan: solver must be a string and state a list of names")
    if not all(isinstance(name, str) for name in names):
        raise ValueError("plan: state must be a list of names")
    if not isinstance(body["t"], list | np.ndarray):
        raise ValueError("plan: t must be a list of numbers")
    if isinstance(body["clip"], list):
        body["clip"] = [_bounds(row) for row in body["clip"]]
    return body


def _bounds(row: Any) -> list[Any]:
    if not isinstance(row, list) or len(row) != 2:
        raise ValueError(f"plan: clip: got {row!r}, expected [lower, upper]")
    return [limit if bound is None else bound for bound, limit in zip(row, (-np.inf, np.inf), strict=True)]


def _ending(path: Path) -> str:
    if path.suffix not in (".json", ".npz"):
        raise ValueError(f"{path}: expected a file ending in .json or .npz")
    return path.suffix
