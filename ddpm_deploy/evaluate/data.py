"""Real samples to compare with: a part that the model may know, and a part held out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.bundle import Manifest
from ddpm_deploy.digits import HIGHEST, digits_arrays
from ddpm_deploy.encoder import ROLE as ENCODER
from ddpm_deploy.encoder import TOKENS
from ddpm_deploy.images import NETWORK_RANGE, to_uint8
from ddpm_deploy.job import checked_conditions
from ddpm_deploy.shapes.caption import captions
from ddpm_deploy.shapes.render import render
from ddpm_deploy.shapes.scene import TRAINING_SEED, draw_scenes, facts

MOST = 10_000  # samples of each part, chosen by chance from larger sets
HELD_OUT_PART = 5  # one of so many, where a source has no such part of its own
SPLIT_SEED = 0
LABELS = "labels"
ARRAY = "x"
SHAPES = "shapes"
SHAPES_KNOWN, SHAPES_HELD_OUT = 4000, 1000
SHAPES_HELD_OUT_SEED = 103  # of scenes that neither the trainer nor the judge has seen

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Samples:
    """x: (n, *S) float32 in network range. conditions: (n, ...) each, or what an encoder makes them of.

    levels: of a number, or None for any. facts: (n, k) what each shows, where that is more than a label.
    """

    x: Array
    conditions: Mapping[str, Array]
    levels: int | None
    facts: Array | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def labels(self) -> Array | None:
        """(n,) classes, where there are any."""
        return self.conditions.get(LABELS)

    def part(self, which: Any) -> Samples:
        """Some of them, by a slice or by their numbers."""
        conditions = {name: array[which] for name, array in self.conditions.items()}
        return Samples(self.x[which], conditions, self.levels, None if self.facts is None else self.facts[which])

    def asked(self, manifest: Manifest) -> Array | None:
        """(n,) or (n, k) what a model shows that draws by their conditions; None where it takes none of these."""
        taken = any(name in self.conditions for name in (*_direct(manifest), *_raw(manifest)))
        return (self.labels if self.facts is None else self.facts) if taken else None


@dataclass(frozen=True, eq=False)
class RealData:
    """known: what the model was, or may have been, trained on. held_out: the others. split: how they were parted."""

    name: str
    known: Samples
    held_out: Samples
    split: str

    @property
    def digest(self) -> str:
        """Of every number in both parts."""
        state = hashlib.sha256()
        for part in (self.known, self.held_out):
            for array in (part.x, *(part.conditions[name] for name in sorted(part.conditions))):
                state.update(f"{array.dtype}{array.shape}{part.levels}".encode())
                state.update(np.ascontiguousarray(array).tobytes())
        return f"sha256:{state.hexdigest()}"


def open_data(source: str, manifest: Manifest, held_out: str | None = None, most: int = MOST) -> RealData:
    """Real samples for a model.

    source: `digits`, `shapes`, `npz:FILE`, or what training takes, `folder:PATH` and `cifar10:PATH`. held_out: another
    source for that part; None takes the source's own, or one in five by chance. most: samples of each part.
    """
    known = read_source(source, manifest)
    if held_out is not None:
        kept, split = read_source(held_out, manifest), f"held out: {held_out}"
    elif source == "digits":
        kept, split = _digits(held_out=True), "held out by the data set: never trained on by this package"
    elif source == SHAPES:
        kept, split = _shapes(manifest, held_out=True), "held out: rendered from other numbers than the trainer's"
    else:
        order = np.random.default_rng(SPLIT_SEED).permutation(len(known))
        count = max(1, len(known) // HELD_OUT_PART)
        kept, known = known.part(order[:count]), known.part(order[count:])
        split = "held out by chance: the model may have been trained on it"
    return RealData(source, _at_most(known, most), _at_most(kept, most), split)


def read_source(source: str, manifest: Manifest) -> Samples:
    """All samples of one source, which are to have the shape of the model's."""
    kind, _, path = source.partition(":")
    if source == "digits":
        found = _digits(held_out=False)
    elif source == SHAPES:
        found = _shapes(manifest, held_out=False)
    elif kind == "npz" and path:
        found = _archive(Path(path))
    else:
        found = _training_set(source, manifest)
    if found.x.shape[1:] != manifest.sample_shape or not len(found):
        raise ValueError(
            f"data: {source!r} has samples of shape {found.x.shape[1:]}, the model {manifest.sample_shape}"
        )
    return found


def conditions_for(samples: Samples, manifest: Manifest) -> dict[str, Array]:
    """What a sampler takes as the condition of these samples: the inputs of the model's encoder, or its conditions.

    One that the data lack is the model's null, if it has one.
    """
    raw = _raw(manifest)
    if raw and all(name in samples.conditions for name in raw):
        computed = {spec.name for file in manifest.files if file.role == ENCODER for spec in file.outputs}
        return {name: samples.conditions[name] for name in raw} | _given(samples, manifest, computed)
    return _given(samples, manifest, set())


def _given(samples: Samples, manifest: Manifest, computed: set[str]) -> dict[str, Array]:
    wanted = [condition for condition in manifest.conditions if condition.name not in computed]
    given = {each.name: samples.conditions[each.name] for each in wanted if each.name in samples.conditions}
    return checked_conditions(given, wanted, len(samples))


def _direct(manifest: Manifest) -> list[str]:
    return [condition.name for condition in manifest.conditions]


def _raw(manifest: Manifest) -> list[str]:
    """What the model's encoder takes, if it has one."""
    return [spec.name for file in manifest.files if file.role == ENCODER for spec in file.inputs]


def _digits(held_out: bool) -> Samples:
    x, labels = digits_arrays(held_out)
    return Samples(x, {LABELS: labels}, HIGHEST + 1)


def _shapes(manifest: Manifest, held_out: bool) -> Samples:
    """Scenes of the kinds that are trained on, rendered in 8 bits; with captions' tokens for a model that reads."""
    seed, count = (SHAPES_HELD_OUT_SEED, SHAPES_HELD_OUT) if held_out else (TRAINING_SEED, SHAPES_KNOWN)
    numbers = np.arange(count)
    scenes = draw_scenes(seed, numbers)
    conditions: dict[str, Array] = {}
    if manifest.tokenizer is not None:
        conditions = {TOKENS: manifest.tokenizer.encode(captions(scenes, seed, numbers))}
    elif TOKENS in (*_direct(manifest), *_raw(manifest)):
        raise ValueError(
            f"data: {SHAPES!r} has captions, but the bundle has no tokenizer that makes {TOKENS!r} of them; "
            "export the model again, with its tokenizer"
        )
    return Samples(_of_bytes(to_uint8(render(scenes))), conditions, 256, facts(scenes))


def _archive(path: Path) -> Samples:
    """`x` (n, *S), uint8 for 8-bit values or float32 in network range; any other arrays are conditions."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        x = arrays.pop(ARRAY)
    except OSError:
        raise
    except Exception as error:  # a damaged archive raises half a dozen kinds
        raise ValueError(f"{path}: not an .npz file with an array {ARRAY!r} ({error})") from None
    if x.dtype not in (np.uint8, np.float32) or any(len(array) != len(x) for array in arrays.values()):
        raise ValueError(f"{path}: {ARRAY}: got {x.dtype} {x.shape}, expected uint8 or float32, as long as the others")
    if x.dtype == np.float32:
        return Samples(x, arrays, None)
    return Samples(_of_bytes(x), arrays, 256)


def _of_bytes(x: Array) -> Array:
    low, high = NETWORK_RANGE
    return np.asarray(x * np.float32((high - low) / 255) + np.float32(low))


def _training_set(source: str, manifest: Manifest) -> Samples:
    """What the trainer would read, with its labels if the model takes any."""
    from ddpm_deploy.train.data import load_data  # needs torch

    shape = manifest.sample_shape
    labelled = any(condition.name == LABELS for condition in manifest.conditions)
    picture = {"size": shape[-1], "channels": shape[0]} if source.startswith("folder:") else {}
    data = load_data(source, labels=labelled or source.startswith("cifar10:"), **picture)
    items = [data.dataset[i] for i in range(len(data.dataset))]
    pairs = [item if isinstance(item, tuple) else (item, {}) for item in items]
    names = pairs[0][1].keys() if pairs else ()
    conditions = {name: np.stack([np.asarray(given[name]) for _, given in pairs]) for name in names}
    return Samples(np.stack([np.asarray(x, np.float32) for x, _ in pairs]), conditions, data.levels)


def _at_most(samples: Samples, most: int) -> Samples:
    if len(samples) <= most:
        return samples
    return samples.part(np.sort(np.random.default_rng(SPLIT_SEED).permutation(len(samples))[:most]))
