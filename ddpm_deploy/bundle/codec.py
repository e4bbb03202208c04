"""The manifest as JSON text and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from typing import Any

from ddpm_deploy.bundle.fields import Fields, load_json, mapping, text
from ddpm_deploy.bundle.manifest import FORMAT_VERSION, MANIFEST_NAME, DataFile, Manifest, ModelFile
from ddpm_deploy.bundle.records import (
    GRAPH_KEYS,
    MANIFEST_DEFAULTS,
    MANIFEST_KEYS,
    METADATA_DEFAULTS,
    METADATA_KEYS,
    decode_manifest,
)
from ddpm_deploy.errors import BundleError


def to_json(manifest: Manifest) -> str:
    """The text of bundle.json; raises BundleError where `from_json` would refuse it."""
    text = _dump(manifest, MANIFEST_KEYS, {})
    from_json(text)
    return text


def from_json(text: str | bytes) -> Manifest:
    """Parse and check the text of bundle.json; raises BundleError naming the field."""
    return _decode(text, MANIFEST_NAME, MANIFEST_KEYS, MANIFEST_DEFAULTS)


def to_metadata(manifest: Manifest, file: ModelFile) -> str:
    """The text that travels inside the ONNX file `file`: the manifest without any other file.

    It holds neither the file's name nor its size and hash, which a file cannot tell of itself.
    """
    text = _dump(manifest, METADATA_KEYS, {"graph": {key: getattr(file, key) for key in GRAPH_KEYS}})
    from_metadata(text, file)
    return text


def from_metadata(text: str | bytes, file: DataFile | ModelFile) -> Manifest:
    """Parse what `to_metadata` wrote into the given file, whose name, size and hash it takes."""
    alone = _decode(text, file.path, METADATA_KEYS, METADATA_DEFAULTS)
    graph = replace(alone.files[0], path=file.path, size_bytes=file.size_bytes, sha256=file.sha256)
    return replace(alone, files=(graph,))


def _dump(manifest: Manifest, keys: tuple[str, ...], extra: dict[str, Any]) -> str:
    tables = {"alpha": manifest.schedule.alpha.tolist(), "sigma": manifest.schedule.sigma.tolist()}
    tokenizer = None if manifest.tokenizer is None else manifest.tokenizer.to_dict()
    members = vars(manifest) | {"schedule": tables, "tokenizer": tokenizer} | extra
    try:
        lines = [f'"{key}": {json.dumps(members[key], allow_nan=False, default=_plain)}' for key in keys]
    except (TypeError, ValueError) as error:
        raise BundleError(f"manifest: {error}; use only texts, finite numbers, lists and dicts in it") from None
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _plain(value: Any) -> dict[str, Any]:
    if is_dataclass(value):
        return vars(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"cannot store {type(value).__name__} as JSON")


def _decode(
    text: str | bytes, source: str, keys: tuple[str, ...], defaults: Mapping[str, Any] | None = None
) -> Manifest:
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    value = mapping(load_json(data, source), source)
    newer = _newer_minor(value, source)
    try:
        return decode_manifest(Fields(value, source, keys, defaults))
    except BundleError as error:
        raise BundleError(f"{error}{newer}") from None


def _newer_minor(members: dict[str, Any], source: str) -> str:
    """Refuse another major version; for a newer minor one give the hint that goes after any complaint."""
    if "format_version" not in members:
        raise BundleError(f"{source}: 'format_version' is missing; it is no bundle of this package")
    version = text(members["format_version"], f"{source}: format_version", r"[0-9]{1,4}\.[0-9]{1,4}")
    major, minor = (int(part) for part in version.split("."))
    own_major, own_minor = (int(part) for part in FORMAT_VERSION.split("."))
    if major != own_major:
        remedy = "upgrade ddpm-deploy" if major > own_major else "export the model again"
        raise BundleError(f"{source}: format_version: got {version}, expected {own_major}.x; {remedy}")
    if minor > own_minor:
        return f" (format {version} is newer than this package's {FORMAT_VERSION}: upgrade ddpm-deploy)"
    return ""
