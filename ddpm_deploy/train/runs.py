"""A run folder: `run.json` says what was trained, `checkpoints/` holds the weights."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import nn

from ddpm_deploy import __version__
from ddpm_deploy.bundle import VARIANCES, Condition, Defaults, OutputAffine
from ddpm_deploy.errors import TrainingError
from ddpm_deploy.model import build_network
from ddpm_deploy.schedule import PREDICTIONS, NoiseSchedule
from ddpm_deploy.strict import from_dict, require_counts
from ddpm_deploy.train.checkpoint import find_checkpoint, read_state, read_tensors, write_file
from ddpm_deploy.train.config import TrainConfig

RUN_NAME = "run.json"
CHECKPOINTS = "checkpoints"
FORMAT = "ddpm-deploy run"
FORMAT_VERSION = 1
FIXED = ("spec", "schedule", "prediction", "variance", "clip", "sample_shape", "conditions", "data", "optimizer")


@dataclass(frozen=True)
class Listing:
    """Which files a folder of images held: their number, and the SHA-256 of their names in order."""

    count: int
    names_sha256: str


@dataclass(frozen=True)
class Description:
    """What a trained network is, apart from its weights: the contents of run.json.

    spec: how `build_network` makes the network, None for a module of the user's own. variance: of the reverse step,
    "small", "large" or "learned". clip: bounds of the clean sample in network range, or None. output: to the user's
    units. data: name of the data set. listing: its files, where it is a folder. levels: see `Data`. training: the
    settings. Other fields as in `bundle.Manifest`.
    """

    name: str
    spec: Mapping[str, Any] | None
    schedule: NoiseSchedule
    prediction: str
    variance: str
    clip: tuple[float, float] | None
    sample_shape: tuple[int, ...]
    output: OutputAffine
    conditions: tuple[Condition, ...]
    defaults: Defaults
    data: str
    training: TrainConfig
    listing: Listing | None = field(default=None, kw_only=True)
    levels: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name, allowed in (("prediction", PREDICTIONS), ("variance", VARIANCES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected one of {', '.join(allowed)}")
        require_counts(self, "sample_shape")
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise ValueError(f"clip: got {self.clip}, expected (low, high) with low < high, or None")


@dataclass(frozen=True)
class Run(Description):
    """A trained network, ready to use. network: in eval mode with the averaged weights. step: training steps done."""

    network: nn.Module
    step: int
    provenance: dict[str, Any] = field(default_factory=dict)


def load_run(path: str | os.PathLike[str], *, step: int | None = None, network: nn.Module | None = None) -> Run:
    """Load a run with the averaged weights of its newest checkpoint, or that of the given step.

    network: needed where the run was made with a module of the user's own; its weights are overwritten.
    Raises TrainingError for a missing or damaged run.
    """
    description = read_description(path)
    checkpoint = find_checkpoint(Path(path) / CHECKPOINTS, step)
    done = read_state(checkpoint)["step"]
    module = _network(description, network)
    try:
        module.load_state_dict(read_tensors(checkpoint, "ema"))
    except RuntimeError as error:
        raise TrainingError(f"{checkpoint}: the weights do not fit the network ({_short(error)})") from None
    provenance = {
        "data": description.data,
        "steps": done,
        "seed": description.training.seed,
        "trainer": f"ddpm-deploy {__version__}",
        "training": description.training.to_dict(),
    }
    members = {member.name: getattr(description, member.name) for member in fields(Description)}
    return Run(**members, network=module.eval(), step=done, provenance=provenance)


def _network(description: Description, given: nn.Module | None) -> nn.Module:
    if given is not None:
        return given
    if description.spec is None:
        raise TrainingError("network: the run was made with a module of your own; give it: load_run(path, network=...)")
    try:
        return build_network(description.spec)
    except (ValueError, TypeError) as error:
        raise TrainingError(f"{RUN_NAME}: network: {error}; the file is damaged or of another version") from None


def _short(error: object, limit: int = 300) -> str:
    line = " ".join(str(error).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def write_description(path: Path, description: Description) -> None:
    """Write run.json."""
    schedule = {"alpha": description.schedule.alpha.tolist(), "sigma": description.schedule.sigma.tolist()}
    members = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "package_version": __version__,
        "name": description.name,
        "network": description.spec,
        "prediction": description.prediction,
        "variance": description.variance,
        "clip": description.clip,
        "sample_shape": description.sample_shape,
        "output": asdict(description.output),
        "conditions": [asdict(condition) for condition in description.conditions],
        "defaults": asdict(description.defaults),
        "data": description.data,
        "training": description.training.to_dict(),
        "schedule": schedule,
    }
    if description.listing is not None:
        members["listing"] = asdict(description.listing)
    if description.levels is not None:
        members["levels"] = description.levels
    write_file(path / RUN_NAME, json.dumps(members, indent=1, allow_nan=False).encode())


def require_same(found: Description, given: Description, out: Path) -> None:
    """Refuse to resume a run as anything but what it is; TrainingError names the field."""
    for name in FIXED:
        old, new = _comparable(found, name), _comparable(given, name)
        if old != new:
            raise TrainingError(f"{out}: {name}: got {_brief(new)}, but the run has {_brief(old)}; give what it has")
    if found.listing is not None and given.listing != found.listing:
        count = given.listing and given.listing.count
        raise TrainingError(
            f"{out}: data: got {count} files, expected the {found.listing.count} that the run began with; "
            "put them back, or train anew"
        )


def _comparable(description: Description, name: str) -> Any:
    if name == "optimizer":
        return description.training.optimizer
    value = getattr(description, name)
    return json.loads(json.dumps(value)) if name == "spec" else value


def _brief(value: Any) -> str:
    return f"one of {value.T} timesteps" if isinstance(value, NoiseSchedule) else _short(repr(value), 100)


def read_description(path: str | os.PathLike[str]) -> Description:
    """Read and check run.json; raises TrainingError that names the field at fault."""
    file = Path(path) / RUN_NAME
    if not file.is_file():
        raise TrainingError(f"{path}: holds no {RUN_NAME}, so it is no run; train first")
    try:
        return _decode(json.loads(file.read_bytes()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise TrainingError(f"{file}: {what}; the file is damaged or of another version") from None


def _decode(members: dict[str, Any]) -> Description:
    if members.pop("format") != FORMAT or members.pop("format_version") != FORMAT_VERSION:
        raise ValueError(f"format: expected {FORMAT!r} version {FORMAT_VERSION}")
    members.pop("package_version")
    spec, clip, tables = members.pop("network"), members.pop("clip"), members.pop("schedule")
    listing = members.pop("listing", None)
    parts: dict[str, Any] = {
        "listing": None if listing is None else from_dict(Listing, listing),
        "output": from_dict(OutputAffine, members.pop("output")),
        "conditions": tuple(from_dict(Condition, condition) for condition in members.pop("conditions")),
        "defaults": from_dict(Defaults, members.pop("defaults")),
        "training": TrainConfig.from_dict(members.pop("training")),
        "sample_shape": tuple(members.pop("sample_shape")),
    }
    return Description(
        spec=spec,
        clip=None if clip is None else (float(clip[0]), float(clip[1])),
        schedule=NoiseSchedule.from_alpha_sigma(tables["alpha"], tables["sigma"]),
        **parts,
        **members,
    )
