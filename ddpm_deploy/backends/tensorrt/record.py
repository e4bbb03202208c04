"""The sidecar of a built engine: everything that it depends on, checked field by field when it is read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from ddpm_deploy.backends.tensorrt.adapter import MODULES
from ddpm_deploy.backends.tensorrt.network import LayerTypes
from ddpm_deploy.backends.tensorrt.profiles import Profile
from ddpm_deploy.backends.tensorrt.settings import MAX_SIZE, BuildSettings, Range, setting_names
from ddpm_deploy.bundle import fields as f
from ddpm_deploy.bundle.manifest import ROLES
from ddpm_deploy.bundle.records import MAX_FILE_BYTES, MAX_RANK, SHA256, SYMBOL, WORD
from ddpm_deploy.errors import BackendError, BundleError

FORMAT = 1
BUILDER = 1  # counts changes of the build itself, so that engines of older packages are built again
STEM_DIGITS = 16

KEY_NAMES = (
    "role", "precision", "onnx_sha256", "bundle_digest", "runtime", "runtime_version", "device", "driver", "builder",
)  # fmt: skip
RECORD_KEYS = ("format", "key", "settings", "engine", "profiles", "layers", "inspected", "seconds")
WORDS = {
    "onnx_sha256": "ONNX file",
    "bundle_digest": "bundle",
    "builder": "builder code",
    "batches": "batch",
    "workspace_bytes": "workspace",
}


@dataclass(frozen=True)
class EngineKey:
    """What an engine depends on; two engines with equal keys can stand for each other.

    bundle_digest: "sha256:...". device: the GPU's name and architecture, or "any" for an engine built without one.
    driver: its version, or None where the engine does not depend on it.
    """

    role: str
    precision: str
    onnx_sha256: str
    bundle_digest: str
    runtime: str
    runtime_version: str
    device: str
    driver: str | None
    settings: BuildSettings
    builder: int = BUILDER

    @property
    def digest(self) -> str:
        """The sha256 of the key, in hexadecimal digits."""
        return hashlib.sha256(json.dumps(_plain_key(self), sort_keys=True).encode()).hexdigest()

    @property
    def stem(self) -> str:
        """The name of its files in a cache."""
        return f"{self.role}.{self.precision}.{self.digest[:STEM_DIGITS]}"

    @property
    def title(self) -> str:
        """What it is, for messages."""
        return f"{self.role} {self.precision} on {self.runtime} {self.runtime_version}"

    def differences(self, other: EngineKey) -> list[str]:
        """In words what would change from this key to the other: "batch 8 -> 16"."""
        mine, its = self._parts(), other._parts()
        runtime = other.runtime if other.runtime == self.runtime else "runtime"
        words = {**WORDS, "runtime_version": f"{runtime} version"}
        return [
            f"{words.get(name, name.replace('_', ' '))} {_in_words(name, mine[name])} -> {_in_words(name, its[name])}"
            for name in mine
            if mine[name] != its[name]
        ]

    def _parts(self) -> dict[str, Any]:
        plain = _plain_key(self)
        return {**plain["key"], **plain["settings"]}


@dataclass(frozen=True)
class EngineRecord:
    """An engine in a cache. layers: see `network.layer_types`. inspected: whether the built engine was looked into too.

    seconds: how long the build took.
    """

    key: EngineKey
    path: str
    size_bytes: int
    sha256: str
    profiles: tuple[Profile, ...]
    layers: LayerTypes
    inspected: bool
    seconds: float

    def to_json(self) -> bytes:
        """The sidecar's text."""
        text = {
            "format": FORMAT,
            **_plain_key(self.key),
            "engine": {"path": self.path, "size_bytes": self.size_bytes, "sha256": self.sha256},
            "profiles": self.profiles,
            "layers": self.layers,
            "inspected": self.inspected,
            "seconds": self.seconds,
        }
        return (json.dumps(text, indent=1) + "\n").encode()


def read_record(text: bytes, where: str) -> EngineRecord:
    """Parse and check a sidecar; BackendError names the field. where: the file's name, for messages."""
    try:
        return _record(f.Fields(f.load_json(text, where), where, RECORD_KEYS))
    except (BundleError, ValueError) as error:
        reason = str(error).partition("; ")[0]
        raise BackendError(f"{reason}; the cache entry is damaged, build the engine again") from None


def _record(fields: f.Fields) -> EngineRecord:
    fields.take("format", f.whole, FORMAT, FORMAT)
    key = EngineKey(**fields.take("key", _key), settings=fields.take("settings", _settings))
    engine = f.Fields(fields.values["engine"], f"{fields.where}: engine", ("path", "size_bytes", "sha256"))
    sha256 = engine.take("sha256", f.text, SHA256)
    path = engine.take("path", f.choice, (engine_name(key, sha256),))
    size_bytes = engine.take("size_bytes", f.whole, 1, MAX_FILE_BYTES)
    return EngineRecord(
        key,
        path,
        size_bytes,
        sha256,
        profiles=fields.take("profiles", f.sequence, _profile),
        layers=fields.take("layers", _layers),
        inspected=fields.take("inspected", _truth),
        seconds=fields.take("seconds", f.number),
    )


def engine_name(key: EngineKey, sha256: str) -> str:
    """The name of an engine's file; another build of the same key gets another one."""
    return f"{key.stem}.{sha256[:STEM_DIGITS]}.engine"


def _key(value: Any, where: str) -> dict[str, Any]:
    fields = f.Fields(value, where, KEY_NAMES)
    return {
        "role": fields.take("role", f.choice, ROLES),
        "precision": fields.take("precision", f.text, WORD),
        "onnx_sha256": fields.take("onnx_sha256", f.text, SHA256),
        "bundle_digest": fields.take("bundle_digest", f.text, f"sha256:{SHA256}"),
        "runtime": fields.take("runtime", f.choice, tuple(MODULES)),
        "runtime_version": fields.take("runtime_version", f.text, WORD),
        "device": fields.take("device", f.text),
        "driver": fields.take("driver", f.optional, f.text),
        "builder": fields.take("builder", f.whole, 1, MAX_SIZE),
    }


def _settings(value: Any, where: str) -> BuildSettings:
    fields = f.Fields(value, where, setting_names())
    return BuildSettings(
        batches=fields.take("batches", f.sequence, f.whole, 1, MAX_SIZE),
        rows=fields.take("rows", _range),
        state_size=fields.take("state_size", _range),
        axes=fields.take("axes", f.sequence, _axis),
        optimization_level=fields.take("optimization_level", f.optional, f.whole, 0, MAX_SIZE),
        workspace_bytes=fields.take("workspace_bytes", f.optional, f.whole, 0, MAX_FILE_BYTES * 2**10),
        hardware_compatibility=fields.take("hardware_compatibility", f.optional, f.text),
        version_compatible=fields.take("version_compatible", _truth),
        strip_weights=fields.take("strip_weights", _truth),
        refit=fields.take("refit", _truth),
        timing_cache=fields.take("timing_cache", f.optional, _truth),
        compute_capabilities=fields.take("compute_capabilities", f.sequence, f.text),
    )


def _range(value: Any, where: str) -> Range:
    sizes = f.sequence(value, where, f.whole, 1, MAX_SIZE)
    if len(sizes) != 3:
        raise f.refuse(where, value, "three sizes")
    return sizes[0], sizes[1], sizes[2]


def _axis(value: Any, where: str) -> tuple[str, Range]:
    if not isinstance(value, list) or len(value) != 2:
        raise f.refuse(where, value, "[name, [least, tuned for, most]]")
    return f.text(value[0], f"{where}[0]", SYMBOL), _range(value[1], f"{where}[1]")


def _profile(value: Any, where: str) -> Profile:
    return {name: _shapes(shapes, f"{where}.{name}") for name, shapes in f.mapping(value, where).items()}


def _shapes(value: Any, where: str) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    shapes = f.sequence(value, where, f.sequence, f.whole, 1, MAX_SIZE)
    if len(shapes) != 3 or len({len(shape) for shape in shapes}) != 1 or len(shapes[0]) > MAX_RANK + 2:
        raise f.refuse(where, value, "three shapes of one rank")
    return shapes[0], shapes[1], shapes[2]


def _layers(value: Any, where: str) -> LayerTypes:
    return {kind: _counts(counts, f"{where}.{kind}") for kind, counts in f.mapping(value, where).items()}


def _counts(value: Any, where: str) -> dict[str, int]:
    return {name: f.whole(count, f"{where}.{name}", 1, MAX_SIZE) for name, count in f.mapping(value, where).items()}


def _truth(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise f.refuse(where, value, "true or false")
    return value


def _plain_key(key: EngineKey) -> dict[str, Any]:
    """The key as JSON values, apart from the settings."""
    return {
        "key": {name: getattr(key, name) for name in KEY_NAMES},
        "settings": json.loads(json.dumps(dataclasses.asdict(key.settings))),
    }


def _in_words(name: str, value: Any) -> str:
    """A value short enough to be compared by eye."""
    if name in ("onnx_sha256", "bundle_digest"):
        return str(value).removeprefix("sha256:")[:12]
    if name == "workspace_bytes" and value is not None:
        return f"{value / 2**20:g} MiB"
    if isinstance(value, list):
        return ",".join(_in_words("", item) for item in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "default" if value is None else str(value)
