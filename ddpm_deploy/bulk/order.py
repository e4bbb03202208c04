"""What a set of samples is: every one of them is a function of this and of its index."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.backends import Backend
from ddpm_deploy.backends.auto import AutoBackend
from ddpm_deploy.bulk.files import FORMATS
from ddpm_deploy.plan import Plan
from ddpm_deploy.sampler import BATCH_SIZE
from ddpm_deploy.turns import Turns

SHARD_SIZE = 1000


@dataclass(frozen=True)
class Order:
    """`num` samples, from sample `start` of a seed on, in shards of `shard_size`.

    turns: conditions, the j-th sample of the set having the j-th value of each, over and over. shard_format: "tar" or
    "npz". batch_size: how many share a call of the network. The rest is as `Sampler.sample` takes it.
    """

    plan: Plan
    num: int
    seed: int = 0
    start: int = 0
    size: tuple[int, int] | None = None
    turns: Turns = field(default_factory=dict)
    guidance: float = 1.0
    guidance_interval: tuple[float, float] | None = None
    batch_size: int = BATCH_SIZE
    shard_size: int = SHARD_SIZE
    shard_format: str = "tar"

    def __post_init__(self) -> None:
        for name in ("num", "batch_size", "shard_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a whole number of at least 1")
        for name, count in (("seed", 1), ("start", self.num)):
            if not 0 <= getattr(self, name) <= 2**64 - count:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 0 to {2**64 - count}")
        if self.shard_format not in FORMATS:
            raise ValueError(f"shard_format: got {self.shard_format!r}, expected one of {', '.join(FORMATS)}")

    @property
    def shards(self) -> int:
        """How many shards there are; the last one may be smaller."""
        return -(-self.num // self.shard_size)

    def positions(self, shard: int) -> range:
        """Which samples of the set are in a shard, counted from 0; their index within the seed is `start` more."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.num))

    def samples_in(self, shards: range) -> int:
        """How many samples those shards have in all."""
        missing = self.shards * self.shard_size - self.num
        return len(shards) * self.shard_size - missing * (self.shards - 1 in shards)

    def part(self, own: int, parts: int) -> range:
        """The shards of one of several workers, 1 to `parts`: every shard is one worker's, in any number of them."""
        return range(own - 1, self.shards, parts)

    def identity(self, model: str, digest: str, backend: Backend) -> dict[str, Any]:
        """Everything that the bits of the set depend on, for `SetFolder.claim`.

        model, digest: of the bundle. Raises ValueError for a backend that may be another for each batch.
        """
        if isinstance(backend, AutoBackend):
            raise ValueError("backend: got auto, which may take another for each batch; name the one that `tune` found")
        return {
            "model": model,
            "bundle": digest,
            "backend": backend.name,
            "runtime": str(backend.details.get("version")),
            "precision": backend.precision,
            "device": backend.device.partition(":")[0],
            "solver": self.plan.solver,
            "nfe": self.plan.nfe,
            "plan": _sha256(self.plan.to_json().encode()),
            "seed": self.seed,
            "num": self.num,
            "start": self.start,
            "size": None if self.size is None else list(self.size),
            **{f"condition {name}": _turn_digest(turn) for name, turn in sorted(self.turns.items())},
            "guidance": float(self.guidance),
            "guidance_interval": None if self.guidance_interval is None else list(map(float, self.guidance_interval)),
            "shard_format": self.shard_format,
            "shard_size": self.shard_size,
            "batch_size": None if backend.batch_invariant else self.batch_size,
        }


def _turn_digest(turn: NDArray[Any]) -> str:
    if turn.dtype == object:  # texts
        return _sha256(json.dumps(turn.tolist()).encode())
    return _sha256(f"{turn.dtype.str} {turn.shape} ".encode() + np.ascontiguousarray(turn).tobytes())


def _sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
