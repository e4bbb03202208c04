"""Checkpoints: folders of safetensors files and one JSON file, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from ddpm_deploy.durable import flush_folder, write_new
from ddpm_deploy.errors import TrainingError

STATE_NAME = "state.json"
FORMAT_VERSION = 1
Tensors = Mapping[str, Tensor]


def save_checkpoint(folder: Path, step: int, parts: Mapping[str, Tensors], state: Mapping[str, Any]) -> Path:
    """Write `folder/step-XXXXXXXX` through a hidden folder, a flush to disk and one rename.

    parts: tensors by file name, such as "ema". state: JSON values. A checkpoint of the same step is replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:08d}"
    new = folder / f".{final.name}.{os.getpid()}.new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        files = {}
        for name, tensors in parts.items():
            data = safetensors.save({key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()})
            files[name] = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            write_new(new / f"{name}.safetensors", data)
        record = {"format_version": FORMAT_VERSION, "step": step, "files": files, "state": dict(state)}
        write_new(new / STATE_NAME, json.dumps(record, indent=1, allow_nan=False).encode())
        flush_folder(new)
        if final.exists():
            shutil.rmtree(final)
        os.rename(new, final)
        flush_folder(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return final


def list_checkpoints(folder: Path) -> list[int]:
    """Steps of the complete checkpoints, oldest first."""
    found = (re.fullmatch(r"step-(\d{8,})", path.name) for path in folder.glob("step-*"))
    return sorted(int(match[1]) for match in found if match and (folder / match[0] / STATE_NAME).is_file())


def find_checkpoint(folder: Path, step: int | None = None) -> Path:
    """The checkpoint of the given step, or the newest; raises TrainingError where there is none."""
    steps = list_checkpoints(folder)
    if not steps:
        raise TrainingError(f"{folder}: holds no checkpoint; train first")
    if step is not None and step not in steps:
        raise TrainingError(f"{folder}: holds no step {step}, only {', '.join(map(str, steps))}")
    return folder / f"step-{steps[-1] if step is None else step:08d}"


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and what interrupted writers left."""
    for step in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(folder / f"step-{step:08d}")
    for left in folder.glob(".step-*.new"):
        shutil.rmtree(left, ignore_errors=True)


def read_state(path: Path) -> dict[str, Any]:
    """The members of a checkpoint's state.json: step, files, state."""
    try:
        record = json.loads((path / STATE_NAME).read_bytes())
    except ValueError as error:
        raise TrainingError(f"{path / STATE_NAME}: not JSON ({error}); {_remedy(path)}") from None
    if not isinstance(record, dict) or set(record) != {"format_version", "step", "files", "state"}:
        raise TrainingError(f"{path / STATE_NAME}: is no checkpoint's state; {_remedy(path)}")
    if record["format_version"] != FORMAT_VERSION:
        version = record["format_version"]
        raise TrainingError(f"{path / STATE_NAME}: format_version: got {version}, expected {FORMAT_VERSION}")
    return record


def read_tensors(path: Path, name: str) -> dict[str, Tensor]:
    """One file of a checkpoint, its size and hash checked on the very bytes that are used."""
    file = path / f"{name}.safetensors"
    expected = read_state(path)["files"].get(name)
    if expected is None or not file.is_file():
        raise TrainingError(f"{file}: is missing; {_remedy(path)}")
    data = file.read_bytes()
    actual = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    for key, value in actual.items():
        if expected.get(key) != value:
            raise TrainingError(f"{file}: {key}: got {value}, expected {expected.get(key)}; {_remedy(path)}")
    try:
        return safetensors.load(data)
    except SafetensorError as error:
        raise TrainingError(f"{file}: {error}; {_remedy(path)}") from None


def _remedy(path: Path) -> str:
    return f"the checkpoint is damaged: remove the folder {path} to fall back to the one before"


def write_file(path: Path, data: bytes) -> None:
    """Replace one file atomically."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    new.unlink(missing_ok=True)
    write_new(new, data)
    os.replace(new, path)
    flush_folder(path.parent)
