"""Engines on disk: found by everything that they depend on, checked before they are handed over.

An engine is code that the runtime loads into the process. So it comes from a folder that only its owner writes to, and
its hash is compared with the one in its sidecar; or the caller vouches for it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
from pathlib import Path
from typing import Protocol

from ddpm_deploy.backends.tensorrt.files import check_owner, open_folder, read_regular, write_atomic
from ddpm_deploy.backends.tensorrt.network import LayerTypes
from ddpm_deploy.backends.tensorrt.profiles import Profile
from ddpm_deploy.backends.tensorrt.record import EngineKey, EngineRecord, engine_name, read_record
from ddpm_deploy.bundle import sha256_of
from ddpm_deploy.bundle.records import MAX_FILE_BYTES
from ddpm_deploy.errors import BackendError

VARIABLE = "DDPM_DEPLOY_CACHE"
MAX_SIDECAR_BYTES = 2**20
ATTEMPTS = 5

logger = logging.getLogger(__name__)


class Built(Protocol):
    """A fresh engine and what is known of it; see `EngineRecord`."""

    @property
    def engine(self) -> bytes: ...
    @property
    def profiles(self) -> tuple[Profile, ...]: ...
    @property
    def layers(self) -> LayerTypes: ...
    @property
    def inspected(self) -> bool: ...
    @property
    def seconds(self) -> float: ...


class EngineCache:
    """A folder of engines, each with a JSON sidecar of the same stem.

    A sidecar names its engine's file by hash and is written last, so readers see the old engine or the new one.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        """root: None is the folder in $DDPM_DEPLOY_CACHE, else the platform's folder for caches."""
        self.root = default_root() if root is None else Path(root).expanduser()

    @property
    def lock_path(self) -> Path:
        """The file that builders lock."""
        return self.root / "build.lock"

    def open(self) -> None:
        """Make the folder; BackendError where it cannot be, or where others could put engines into it."""
        open_folder(self.root)

    def find(self, key: EngineKey) -> EngineRecord | None:
        """The sidecar of the engine with this key, or None; BackendError where it is damaged."""
        record = self._read(self.root / f"{key.stem}.json")
        if record is not None and record.key != key:
            raise BackendError(
                f"{self.root / key.stem}.json: describes another engine; the cache is damaged, build again"
            )
        return record

    def load(self, key: EngineKey) -> tuple[EngineRecord, bytes] | None:
        """The engine with this key and its sidecar, or None; BackendError where it is damaged or edited."""
        for _ in range(ATTEMPTS):
            record = self.find(key)
            if record is None:
                return None
            data = self._engine(record)
            if data is not None:
                return record, data
        raise BackendError(f"{self.root / key.stem}.json: its engine is missing; build it again")

    def store(self, key: EngineKey, built: Built) -> EngineRecord:
        """Write an engine, in place of the one with this key; to be called by the holder of the lock."""
        self.open()
        sha256 = hashlib.sha256(built.engine).hexdigest()
        record = EngineRecord(
            key,
            engine_name(key, sha256),
            len(built.engine),
            sha256,
            built.profiles,
            built.layers,
            built.inspected,
            round(built.seconds, 3),
        )
        write_atomic(self.root / record.path, built.engine)
        write_atomic(self.root / f"{key.stem}.json", record.to_json())
        self._remove_left(key, record.path)
        return record

    def records(self) -> list[EngineRecord]:
        """All engines that are there, damaged sidecars left out with a warning."""
        found = []
        for path in sorted(self.root.glob("*.json")):
            try:
                record = self._read(path)
            except BackendError as error:
                logger.warning("%s", error)
            else:
                found += [record] if record else []
        return found

    def explain(self, key: EngineKey) -> str:
        """Why there is no engine with this key, in words."""
        others = [record.key for record in self.records()]
        if not others:
            return f"no engine for {key.title}: {self.root} holds none"
        nearest = min(others, key=lambda other: (other.role != key.role, len(other.differences(key))))
        return f"no engine for {key.title}: the nearest one differs in: {', '.join(nearest.differences(key))}"

    def _read(self, path: Path) -> EngineRecord | None:
        if self.root.exists():
            check_owner(self.root, self.root.stat())
        text = read_regular(path, MAX_SIDECAR_BYTES)
        return None if text is None else read_record(text, str(path))

    def _engine(self, record: EngineRecord) -> bytes | None:
        path = self.root / record.path
        data = read_regular(path, MAX_FILE_BYTES)
        if data is not None and hashlib.sha256(data).hexdigest() != record.sha256:
            raise BackendError(f"{path}: got other contents than its sidecar says; it is damaged, build it again")
        return data

    def _remove_left(self, key: EngineKey, kept: str) -> None:
        """Remove older builds of the same key and what dead writers left of it."""
        for pattern in (f"{key.stem}.*.engine", f".{key.stem}.*.new"):
            for path in self.root.glob(pattern):
                if path.name != kept:
                    path.unlink(missing_ok=True)


def load_engine(
    source: EngineCache | str | os.PathLike[str],
    key: EngineKey | None = None,
    *,
    digest: str | None = None,
    trust_engine: bool = False,
) -> bytes:
    """An engine's bytes, hashed before they are handed over.

    source: a cache, with the key; or any file, which is loaded only if it has the digest ("sha256:...") or the caller
    trusts it. Raises BackendError for everything else.
    """
    if digest is not None and not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise ValueError(f"digest: got {digest!r}, expected 'sha256:' and 64 hexadecimal digits in lower case")
    where, data = _from_cache(source, key) if isinstance(source, EngineCache) else _from_file(Path(source))
    if digest is None and not trust_engine and not isinstance(source, EngineCache):
        raise BackendError(
            f"{where}: an engine is code, and this one is not from the cache; give its digest, or trust_engine=True"
        )
    if digest is not None and sha256_of(data) != digest:
        raise BackendError(f"{where}: got digest {sha256_of(data)}, expected {digest}; this is not the pinned engine")
    return data


def default_root() -> Path:
    """Where engines lie unless told otherwise."""
    if folder := os.environ.get(VARIABLE):
        return Path(folder).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "ddpm-deploy" / "engines"


def _from_cache(cache: EngineCache, key: EngineKey | None) -> tuple[Path, bytes]:
    if key is None:
        raise ValueError("key: got None, expected the key of an engine in the cache")
    found = cache.load(key)
    if found is None:
        raise BackendError(f"{cache.explain(key)}; run python -m ddpm_deploy.build")
    return cache.root / found[0].path, found[1]


def _from_file(path: Path) -> tuple[Path, bytes]:
    data = read_regular(path, MAX_FILE_BYTES)
    if data is None:
        raise BackendError(f"{path}: is missing; build the engine with python -m ddpm_deploy.build")
    return path, data
