"""A folder of diffusers' `UNet2DModel`, flat or nested; what our U-Net can represent needs no diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ddpm_deploy.bundle import Condition
from ddpm_deploy.errors import ExportError
from ddpm_deploy.export.sources.base import PICTURES, Settings, Source, default_solver
from ddpm_deploy.export.sources.diffusers_unet import FlowTime, Rebuilt, rebuild
from ddpm_deploy.export.sources.files import digest_of_weights, read_json, read_weights
from ddpm_deploy.export.sources.scheduler import Translation, read_scheduler

INDEX = "model_index.json"
CONFIG = "config.json"
SCHEDULER = "scheduler_config.json"
MODEL_CLASS = "UNet2DModel"
STEM = "diffusion_pytorch_model"
WEIGHTS = (f"{STEM}.safetensors", f"{STEM}.safetensors.index.json", f"{STEM}.bin", f"{STEM}.bin.index.json")
USES = ("sample_shape", "schedule", "prediction", "variance", "clip", "output", "conditions", "weights")


def is_diffusers(path: Path) -> bool:
    """Whether a folder looks like one that diffusers wrote."""
    return any((path / name).is_file() for name in (INDEX, CONFIG, f"unet/{CONFIG}"))


def read_diffusers(path: Path, settings: Settings) -> Source:
    """The denoiser of a diffusers folder; nothing is ever downloaded, links of the Hugging Face cache are followed.

    Raises ExportError that names the file and the field that cannot be had.
    """
    settings.require_only(USES, "a diffusers folder")
    _check_index(path)
    nested = (path / "unet" / CONFIG).is_file()
    folder = path / "unet" if nested else path
    config = _config(folder / CONFIG)
    weights = _find_weights(folder) if settings.weights is None else Path(settings.weights)
    model = rebuild(config, read_weights(weights), folder / CONFIG)
    scheduler = _scheduler(path / "scheduler" / SCHEDULER if nested else path / SCHEDULER, settings)
    provenance = {
        "source": "diffusers",
        "weights": weights.name,
        "weights_sha256": digest_of_weights(weights),
        "diffusers": str(config.get("_diffusers_version", "unknown")),
        **model.provenance,
    }
    return _source(_name(path), config, model, scheduler, settings, provenance)


def _source(
    name: str,
    config: Mapping[str, Any],
    model: Rebuilt,
    scheduler: Translation,
    settings: Settings,
    provenance: dict[str, Any],
) -> Source:
    variance = settings.variance or scheduler.variance
    _check_channels(config, variance)
    shape = _sample_shape(config, settings, model.size_multiple)
    network, spec = model.network, model.spec
    if scheduler.flow:
        network, spec = FlowTime(network, scheduler.schedule).eval(), None
    return Source(
        sample_shape=shape,
        schedule=scheduler.schedule,
        prediction=scheduler.prediction,
        variance=variance,
        clip=settings.clip_or(scheduler.clip),
        output=settings.output_or(PICTURES),
        conditions=settings.conditions_or(_conditions(config)),
        defaults=scheduler.defaults,
        name=name,
        provenance=provenance,
        network=network,
        spec=spec,
    )


def _check_index(path: Path) -> None:
    """Refuse a pipeline of more than a U-Net and a scheduler, such as a latent one."""
    if not (path / INDEX).is_file():
        return
    for name, value in read_json(path / INDEX).items():
        used = isinstance(value, list) and any(part is not None for part in value)
        if used and name not in ("unet", "scheduler") and not name.startswith("_"):
            raise ExportError(
                f"{path / INDEX}: {name}: a pipeline with more than a U-Net and a scheduler; "
                f"give {path / 'unet'} with a schedule and a prediction type for its U-Net alone"
            )
        if name == "unet" and (not isinstance(value, list) or value[-1:] != [MODEL_CLASS]):
            raise ExportError(f"{path / INDEX}: unet: got {value!r}, expected a {MODEL_CLASS}")


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ExportError(f"{path}: is missing; it describes the {MODEL_CLASS}, so give the folder that holds it")
    config = read_json(path)
    if config.get("_class_name", MODEL_CLASS) != MODEL_CLASS:
        raise ExportError(f"{path}: _class_name: got {config['_class_name']!r}, expected {MODEL_CLASS!r}")
    return config


def _find_weights(folder: Path) -> Path:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    others = sorted(file.name for file in folder.glob("*") if file.suffix in (".safetensors", ".bin"))
    found = f"found only {', '.join(others[:5])}; name one as weights" if others else "copy the weights there"
    raise ExportError(f"{folder}: expected one of {', '.join(WEIGHTS)}; {found}")


def _scheduler(path: Path, settings: Settings) -> Translation:
    """What scheduler_config.json says, overruled by the settings; these are enough where the file is missing."""
    schedule = settings.given_schedule
    if not path.is_file():
        missing = [name for name in ("schedule", "prediction") if getattr(settings, name) is None]
        if schedule is None or settings.prediction is None:
            raise ExportError(f"{path}: is missing; say {' and '.join(missing)} yourself, or copy the file there")
        return Translation(schedule, settings.prediction, "small", None, default_solver(schedule), flow=False)
    try:
        own = read_scheduler(read_json(path))
    except ExportError as error:
        raise ExportError(f"{path}: {error}") from None
    if own.flow and (schedule is not None or settings.prediction not in (None, "flow")):
        raise ExportError(f"{path}: its network sees sigma as its time, so schedule and prediction cannot be replaced")
    schedule = schedule or own.schedule
    defaults = replace(own.defaults, steps=min(own.defaults.steps, schedule.T))
    return replace(own, schedule=schedule, prediction=settings.prediction or own.prediction, defaults=defaults)


def _check_channels(config: Mapping[str, Any], variance: str) -> None:
    taken, given = config.get("in_channels", 3), config.get("out_channels", 3)
    expected = 2 * taken if variance == "learned" else taken
    if given != expected:
        raise ExportError(
            f"out_channels: got {given}, expected {expected} with in_channels {taken} and variance {variance!r}; "
            "twice as many belong to a learned variance (variance_type learned_range)"
        )


def _sample_shape(config: Mapping[str, Any], settings: Settings, multiple: int) -> tuple[int, ...]:
    channels, size = config.get("in_channels", 3), config.get("sample_size")
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    known = len(sides) == 2 and all(type(side) is int and side > 0 for side in sides)
    if settings.sample_shape is None and not known:
        raise ExportError(f"sample_size: got {size!r}, so give sample_shape yourself, such as {channels}, 32, 32")
    shape = settings.shape_or((channels, *(sides if known else (multiple, multiple))))
    if any(side % multiple for side in shape[1:]):
        raise ExportError(f"sample_shape: got {shape}, expected height and width to be multiples of {multiple}")
    return shape


def _conditions(config: Mapping[str, Any]) -> tuple[Condition, ...]:
    kind, classes = config.get("class_embed_type"), config.get("num_class_embeds")
    if kind is None and classes is not None:
        return (Condition("labels", (), "int64", tuple(map(str, range(classes)))),)
    if kind == "timestep":
        return (Condition("labels", (), "int64"),)
    if kind == "identity":
        width = config.get("time_embedding_dim") or 4 * config["block_out_channels"][0]
        return (Condition("labels", (width,), "float32"),)
    return ()


def _name(path: Path) -> str:
    """The folder's name; in the cache of Hugging Face that of the repository, not of the snapshot."""
    path = path.absolute()
    if path.parent.name == "snapshots":
        return path.parent.parent.name.split("--")[-1]
    return path.name
