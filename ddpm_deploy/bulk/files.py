"""The two forms of a shard; the same samples always give the same bytes."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.images import Bounds, is_picture, to_pil

KEY_DIGITS = 9


@dataclass(frozen=True, eq=False)
class Drawn:
    """One sample of a shard. index: within the seed. conditions: what it was drawn with, a text or an array each."""

    index: int
    seed: int
    sample: NDArray[np.float32]
    conditions: Mapping[str, Any]


def write_tar(stream: BinaryIO, drawn: Iterable[Drawn], bounds: Bounds) -> None:
    """A tar as WebDataset reads it: KEY.png, or KEY.npy where the samples are no pictures, and KEY.json.

    Conditions that are no single values lie in KEY.NAME.npy. bounds: what is black and what is white.
    """
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for each in drawn:
            for ending, data in sorted(_members(each, bounds).items()):
                member = tarfile.TarInfo(f"{each.index:0{KEY_DIGITS}d}.{ending}")  # of no time and nobody's
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def write_npz(stream: BinaryIO, drawn: Iterable[Drawn], bounds: Bounds) -> None:
    """The samples (n, *S) as float32 in network range, their `index`, the `seed`, and `condition.NAME` for each."""
    all_drawn = list(drawn)
    names = all_drawn[0].conditions
    conditions: dict[str, Any] = {
        f"condition.{name}": np.array([each.conditions[name] for each in all_drawn]) for name in names
    }
    np.savez(
        stream,
        samples=np.stack([each.sample for each in all_drawn]),
        index=np.array([each.index for each in all_drawn], np.uint64),
        seed=np.uint64(all_drawn[0].seed),
        **conditions,
    )


FORMATS: dict[str, Callable[[BinaryIO, Iterable[Drawn], Bounds], None]] = {"tar": write_tar, "npz": write_npz}


def _members(drawn: Drawn, bounds: Bounds) -> dict[str, bytes]:
    """What the tar holds of a sample, by the ending of its name."""
    values = {name: value for name, value in drawn.conditions.items() if np.ndim(value) == 0}
    facts = {"index": drawn.index, "seed": drawn.seed} | {n: np.asarray(v).item() for n, v in values.items()}
    arrays = {f"{n}.npy": _npy(v) for n, v in drawn.conditions.items() if n not in values}
    sample = {"png": _png(drawn.sample, bounds)} if is_picture(drawn.sample.shape) else {"npy": _npy(drawn.sample)}
    return {"json": json.dumps(facts, sort_keys=True).encode(), **arrays, **sample}


def _png(sample: NDArray[np.float32], bounds: Bounds) -> bytes:
    file = io.BytesIO()
    to_pil(sample[None], bounds)[0].save(file, "PNG")
    return file.getvalue()


def _npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()
