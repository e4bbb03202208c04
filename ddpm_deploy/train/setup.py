"""From command-line options to a network, a data set and a description."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddpm_deploy.errors import TrainingError
from ddpm_deploy.model import UNet, build_network
from ddpm_deploy.model.text import TEXT_CHANNELS, TextToImage, text_to_image
from ddpm_deploy.train.api import find_conditions, spec_of
from ddpm_deploy.train.batches import stream_seed
from ddpm_deploy.train.captioned import CAPTIONED
from ddpm_deploy.train.checkpoint import list_checkpoints
from ddpm_deploy.train.config import TrainConfig
from ddpm_deploy.train.data import LABELS, Data, load_data
from ddpm_deploy.train.presets import SCHEDULES, Preset
from ddpm_deploy.train.runs import CHECKPOINTS, Description, read_description

SETTINGS = tuple(field.name for field in fields(TrainConfig))
FIXED_ON_RESUME = ("optimizer",)  # settings that the stored state depends on
Parts = tuple[nn.Module, Data, Description]


def new_run(out: Path, preset: Preset, given: Mapping[str, Any], progress: bool = False) -> Parts:
    """A fresh network. given: options by name; what is missing comes from the preset. progress: show a bar."""
    config = replace(preset.config, **{name: given[name] for name in SETTINGS if name in given})
    name = given.get("data", preset.data)
    if name is None:
        raise ValueError("data: missing, and the preset names none; give --data folder:PATH or --data cifar10:PATH")
    if not name.startswith("folder:"):
        for option in sorted({"size", "channels"} & set(given)):
            raise ValueError(f"{option}: is for folders of images, {name} has its own; leave --{option} out")
    channels = given.get("channels", preset.network.in_channels)
    labels = given.get("labels", preset.labels and name == preset.data)
    data = load_data(name, size=given.get("size", preset.size), channels=channels, labels=labels)
    variance = given.get("variance", preset.variance)
    with _seeded_weights(config.seed):
        network = _network(preset, data, variance, given.get("network"))
        _prepare(network, data, progress)
    description = Description(
        name=out.resolve().name,
        spec=spec_of(network),
        schedule=SCHEDULES[given.get("schedule", preset.schedule)](given.get("timesteps", preset.T)),
        prediction=given.get("prediction", preset.prediction),
        variance=variance,
        clip=data.clip,
        sample_shape=data.sample_shape,
        output=data.output,
        conditions=find_conditions(data),
        defaults=preset.defaults,
        data=name,
        training=config,
        listing=getattr(data.dataset, "listing", None),
        tokenizer=data.tokenizer,
        levels=data.levels,
    )
    _refuse_idle(description, given)
    return network, data, description


def resumed_run(out: Path, given: Mapping[str, Any], progress: bool = False) -> Parts:
    """The network, data and description of the run in `out`; only settings of the training may be given anew."""
    for name in given:
        if name not in SETTINGS or name in FIXED_ON_RESUME:
            raise ValueError(
                f"{name}: cannot be changed in a run that is resumed; leave --{name.replace('_', '-')} out"
            )
    description = read_description(out)
    if description.spec is None:
        raise TrainingError(f"{out}: was trained with a module of your own; resume it with ddpm_deploy.train.train")
    shape = description.sample_shape
    if not description.data.startswith(("digits", *CAPTIONED, "folder:", "cifar10:")):
        raise TrainingError(f"{out}: was trained on data of your own; resume it with ddpm_deploy.train.train")
    labels = LABELS in [condition.name for condition in description.conditions]
    data = load_data(description.data, size=shape[-1], channels=shape[0], labels=labels)
    training = replace(description.training, **given)
    with _seeded_weights(training.seed):
        network = build_network(description.spec)
        if not list_checkpoints(out / CHECKPOINTS):  # else the weights are read from it
            _prepare(network, data, progress)
    listing = getattr(data.dataset, "listing", None)
    return network, data, replace(description, training=training, listing=listing)


@contextmanager
def _seeded_weights(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "weights"))
        yield


def _network(preset: Preset, data: Data, variance: str, file: Path | None) -> nn.Module:
    if file is None:
        channels = data.sample_shape[0]
        out = 2 * channels if variance == "learned" else None
        asked = {**_classes(data), **_text(preset, data)}
        unet = replace(preset.network, in_channels=channels, out_channels=out, **asked)
        return UNet(unet) if data.tokenizer is None else text_to_image(data.tokenizer, unet)
    try:
        return build_network(json.loads(file.read_bytes()))
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: {error}; expected a network's kind and config as JSON") from None


def _prepare(network: nn.Module, data: Data, progress: bool) -> None:
    """What the data set has to teach a fresh network before it is trained."""
    if isinstance(network, TextToImage) and hasattr(data.dataset, "prepare"):
        data.dataset.prepare(network, progress)


def _refuse_idle(description: Description, given: Mapping[str, Any]) -> None:
    """Refuse a setting that was asked for and would change nothing."""
    if "vlb_weight" in given and description.variance != "learned":
        raise ValueError("vlb_weight: is for a learned variance only; give --variance learned, or leave it out")
    if "condition_dropout" in given and all(condition.null is None for condition in description.conditions):
        raise ValueError("condition_dropout: the data has no condition to drop; give --labels, or leave it out")


def _classes(data: Data) -> dict[str, Any]:
    """The labels that a U-Net has to take for this data."""
    known = [condition for condition in data.conditions if condition.name == LABELS]
    return {"num_classes": len(known[0].classes or ()), "null_class": True} if known else {}


def _text(preset: Preset, data: Data) -> dict[str, Any]:
    """The widths of what a U-Net has to read for this data."""
    own = preset.network
    if data.tokenizer is None:
        return {"text_channels": None, "pooled_channels": None}
    return {
        "text_channels": own.text_channels or TEXT_CHANNELS,
        "pooled_channels": own.pooled_channels or TEXT_CHANNELS,
    }
