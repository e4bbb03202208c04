"""The folder of a set: what it is a set of, its shards, and beside each shard its hash.

A shard is there when the file beside it is, which is written last. Both appear in one step, complete and flushed to
the disk: who dies leaves whole shards and, at most, an unfinished file under a hidden name. A shard is a function of
the set, so that two who draw the same one do no harm.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import Any

from ddpm_deploy.durable import flush_folder, replacing, sweep, write_new
from ddpm_deploy.errors import ShardError
from ddpm_deploy.strict import from_dict, to_dict

SET_FILE = "set.json"
SET_FORMAT = 1
SETTLE_S = 0.5  # until somebody else has written a few hundred bytes
SHOWN = 20  # characters of a value, which tells digests apart
SHARD_FILE = re.compile(r"shard-\d{6,}\.(tar|npz)(\.json)?")


@dataclass(frozen=True)
class Record:
    """What lies beside a shard. start: the index of its first sample within the seed. set: the digest of the set."""

    sha256: str
    size_bytes: int
    start: int
    samples: int
    set: str


class SetFolder:
    """A folder of one set of samples; all who draw the set share it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._claimed: str | None = None

    # -- the set --------------------------------------------------------------------------------------------------

    def claim(self, identity: Mapping[str, Any]) -> None:
        """Make this the folder of a set, or find that it is; ShardError where it holds anything else."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / SET_FILE).exists():
            self._refuse_others()
            self._write_identity(identity)
        sweep(self.path, "*")
        there = self.identity()
        if there == identity:
            self._claimed = _digest(there)
            return
        changed = [name for name in {**there, **identity} if there.get(name) != identity.get(name)]
        told = "; ".join(f"{n}: {_short(there.get(n))} there, {_short(identity.get(n))} asked for" for n in changed)
        raise ShardError(f"{self.path}: holds another set of samples: {told}; give another folder, or ask for the same")

    def identity(self) -> dict[str, Any]:
        """What the set in this folder is of; ShardError where there is none."""
        file = self.path / SET_FILE
        try:
            found = json.loads(file.read_bytes())
        except FileNotFoundError:
            raise ShardError(f"{self.path}: holds no set of samples ({SET_FILE} is missing); give its folder") from None
        except (ValueError, RecursionError) as error:
            raise ShardError(f"{file}: not JSON ({error}); draw the set into another folder") from None
        if not isinstance(found, dict) or found.pop("format", None) != SET_FORMAT:
            raise ShardError(f"{file}: expected a set of format {SET_FORMAT}; draw the set into another folder")
        return found

    # -- its shards -----------------------------------------------------------------------------------------------

    def shard(self, number: int, ending: str) -> Path:
        """Where a shard is, or will be."""
        return self.path / f"shard-{number:06d}.{ending}"

    @contextmanager
    def writing(self, shard: Path, start: int, samples: int) -> Iterator[BufferedRandom]:
        """A file that becomes the shard when the block ends."""
        with replacing(shard) as stream:
            yield stream
            size_bytes, sha256 = stream.seek(0, os.SEEK_END), _sha256_from_start(stream)
        record = Record(sha256, size_bytes, start, samples, self.digest())
        with replacing(_beside(shard)) as stream:
            stream.write(json.dumps(to_dict(record)).encode())
        for file in (shard, _beside(shard)):
            sweep(self.path, file.name)

    def fault(self, shard: Path, start: int, samples: int) -> str | None:
        """What is wrong with a shard, of which every byte is read; None for nothing."""
        try:
            record = from_dict(Record, json.loads(_beside(shard).read_bytes()), _beside(shard).name)
            with shard.open("rb") as stream:
                sha256 = _sha256_from_start(stream)
        except FileNotFoundError as error:
            return f"{Path(error.filename).name} is missing"
        except (ValueError, TypeError, RecursionError) as error:
            return f"{_beside(shard).name} is damaged ({error})"
        if (record.start, record.samples, record.set) != (start, samples, self.digest()):
            return f"{shard.name} belongs to another set"
        return None if sha256 == record.sha256 else f"{shard.name} has another hash than {_beside(shard).name} says"

    def digest(self) -> str:
        """Of the identity of the set: the one that was claimed, or else the one that is there."""
        return self._claimed or _digest(self.identity())

    # -- inside ---------------------------------------------------------------------------------------------------

    def _write_identity(self, identity: Mapping[str, Any]) -> None:
        """Write the file of the set, unless somebody else is faster."""
        file, new = self.path / SET_FILE, self.path / f".{SET_FILE}.{os.urandom(8).hex()}.new"
        data = json.dumps({"format": SET_FORMAT, **identity}, indent=1).encode()
        write_new(new, data)
        try:
            os.link(new, file)
        except (FileExistsError, FileNotFoundError):  # the latter: swept away by who was faster
            return
        except OSError:  # a file system without links
            try:
                write_new(file, data)
            except FileExistsError:
                time.sleep(SETTLE_S)
        finally:
            new.unlink(missing_ok=True)
        flush_folder(self.path)

    def _refuse_others(self) -> None:
        names = sorted(name for name in os.listdir(self.path) if not name.startswith("."))
        foreign = [name for name in names if name != SET_FILE and not SHARD_FILE.fullmatch(name)]
        if foreign:
            raise ShardError(f"{self.path}: holds {foreign[0]}, which is no part of a set; give another folder")


def _digest(identity: Mapping[str, Any]) -> str:
    return f"sha256:{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()}"


def _beside(shard: Path) -> Path:
    return shard.with_name(f"{shard.name}.json")


def _sha256_from_start(stream: BufferedRandom | BufferedReader) -> str:
    stream.seek(0)
    return hashlib.file_digest(stream, "sha256").hexdigest()


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
