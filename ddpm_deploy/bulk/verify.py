"""Whether a set is complete and undamaged; needs neither the model nor a runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ddpm_deploy.bulk.folder import SetFolder
from ddpm_deploy.errors import ShardError


@dataclass(frozen=True)
class Verdict:
    """What was found of a set. faults: one line for each shard at fault."""

    shards: int
    samples: int
    faults: tuple[str, ...]


def verify_set(folder: SetFolder, show: Callable[[int], object] = int) -> Verdict:
    """Read every byte of a set. show: told how many samples have been looked at. Raises ShardError without a set."""
    num, size, start, ending = _layout(folder)
    faults = []
    for number, first in enumerate(range(0, num, size)):
        samples = min(size, num - first)
        faults.append(folder.fault(folder.shard(number, ending), start + first, samples))
        show(samples)
    return Verdict(len(faults), num, tuple(fault for fault in faults if fault is not None))


def _layout(folder: SetFolder) -> tuple[int, int, int, str]:
    """How many samples, how many in a shard, from which index, in what form."""
    identity = folder.identity()
    num, size, start = (_count(folder, identity.get(name)) for name in ("num", "shard_size", "start"))
    return num, max(1, size), start, str(identity.get("shard_format"))


def _count(folder: SetFolder, value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ShardError(f"{folder.path}: its set.json does not tell what shards there are; draw the set elsewhere")
    return value
