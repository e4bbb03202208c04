"""Reading files that nobody vouches for: small JSON, safetensors whole or in shards, checkpoints without code."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from ddpm_deploy.errors import ExportError

MAX_JSON_BYTES = 16 * 2**20
INDEX_ENDING = ".index.json"
PLAIN_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.+-]*"
CODE_INSIDE = "it may hold code, which is never run; save the tensors as safetensors"


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object of at most 16 MiB; symbolic links, as in the cache of Hugging Face, are followed."""
    try:
        with open(path, "rb") as stream:
            data = stream.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise ExportError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_JSON_BYTES:
        raise ExportError(f"{path}: got more than {MAX_JSON_BYTES} bytes, expected a small JSON file")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path}: is no JSON: {error}; copy the file again") from None
    if not isinstance(value, dict):
        raise ExportError(f"{path}: got a {type(value).__name__}, expected a JSON object")
    return value


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file."""
    try:
        return load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ExportError(f"{path}: is no whole safetensors file: {_line(error)}; copy it again") from None


def read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of all files that a `*.index.json` lists; the files lie beside it under plain names."""
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise ExportError(f"{index}: weight_map: expected file names by tensor; copy the file again")
    state: dict[str, Tensor] = {}
    for name in sorted({str(name) for name in listed.values()}):
        if not re.fullmatch(PLAIN_NAME, name) or name.endswith(INDEX_ENDING):
            raise ExportError(f"{index}: weight_map: got {name!r}, expected a plain file name beside the index")
        state |= read_weights(index.parent / name)
    missing = sorted(set(listed) - set(state))
    if missing or len(state) != len(listed):
        what = f"{missing[0]} is in none of the files" if missing else "the files hold tensors that it does not list"
        raise ExportError(f"{index}: {what}; copy the folder again")
    return state


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from a file of any kind, told by its ending: shards, safetensors, else a torch checkpoint.

    NaN and infinity are refused.
    """
    if path.name.endswith(INDEX_ENDING):
        return read_shards(path)
    if path.suffix == ".safetensors":
        return require_finite(read_safetensors(path), path)
    checkpoint = read_checkpoint(path)
    return require_finite(as_state(checkpoint, f"{path}"), path)


def read_checkpoint(path: Path) -> Any:
    """What `torch.save` wrote, through `weights_only=True`: tensors, numbers and texts, and never code."""
    _check_archive(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # on pickle protocols that it will refuse in a moment
            value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ExportError(f"{path}: torch.load(weights_only=True) refuses it: {CODE_INSIDE}") from None
    except Exception as error:  # a damaged file fails in any way
        raise ExportError(f"{path}: is no whole torch checkpoint: {_line(error)}; copy it again") from None
    _check_tensors(value, path)
    return value


def as_state(value: Any, where: str) -> dict[str, Tensor]:
    """A mapping from names to tensors, or ExportError that names the first member that is none."""
    if not isinstance(value, Mapping) or not value:
        raise ExportError(f"{where}: got a {type(value).__name__}, expected tensors by name")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ExportError(f"{where}: {name}: got a {type(tensor).__name__}, expected a tensor")
    return dict(value)


def require_finite(state: dict[str, Tensor], where: Path | str) -> dict[str, Tensor]:
    """The same tensors; ExportError names the first one with NaN or infinity."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ExportError(f"{where}: {name}: holds NaN or infinity; the training diverged or the file is damaged")
    return state


def sha256_of_file(path: Path) -> str:
    """Of the file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_of_weights(path: Path) -> str:
    """SHA-256 of a file of weights; of shards, of the lines `HASH NAME` of all of them."""
    if not path.name.endswith(INDEX_ENDING):
        return sha256_of_file(path)
    names = sorted(set(read_json(path)["weight_map"].values()))
    lines = "".join(f"{sha256_of_file(path.parent / name)} {name}\n" for name in names)
    return hashlib.sha256(lines.encode()).hexdigest()


def _check_archive(path: Path) -> None:
    """Refuse an archive whose members are compressed or lie over each other: they could grow without bound."""
    try:
        if not zipfile.is_zipfile(path):
            return  # the old format; torch.load checks it
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as error:  # a damaged directory fails in any way
        raise ExportError(f"{path}: cannot be read: {_line(error)}; copy it again") from None
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise ExportError(f"{path}: {member.filename}: is compressed, which torch.save never does")
    total = sum(member.file_size for member in members)
    if total > path.stat().st_size:
        raise ExportError(f"{path}: its members take {total} bytes, which is more than it has; it is damaged")


def _check_tensors(value: Any, path: Path) -> None:
    """Refuse tensors that are larger than the file, such as views that repeat one number a billion times."""
    total = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(value))
    size = path.stat().st_size
    if total > 2 * size:  # two names may share one storage
        raise ExportError(f"{path}: declares {total} bytes of tensors, but is {size} bytes long; it is damaged")


def _tensors(value: Any) -> list[Tensor]:
    """Every tensor in nested containers, each looked into once: a few lists of one another can spell billions."""
    found: list[Tensor] = []
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, Mapping | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            waiting.extend(item.values() if isinstance(item, Mapping) else item)
    return found


def _line(error: BaseException, limit: int = 200) -> str:
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= limit else line[: limit - 3] + "..."
