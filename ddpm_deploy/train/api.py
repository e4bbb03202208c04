"""Training as one call."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from ddpm_deploy.bundle import Condition, Defaults, OutputAffine
from ddpm_deploy.schedule import NoiseSchedule
from ddpm_deploy.train.batches import Batches
from ddpm_deploy.train.config import TrainConfig
from ddpm_deploy.train.data import Data
from ddpm_deploy.train.runs import Description, Run, load_run
from ddpm_deploy.train.trainer import Trainer

AS_GIVEN = OutputAffine(scale=(1.0,), offset=(0.0,), units="as in the data set")
DEFAULT_STEPS = 20


def train(
    network: nn.Module,
    dataset: Any,
    schedule: NoiseSchedule,
    *,
    out: str | os.PathLike[str],
    config: TrainConfig | None = None,
    prediction: str = "eps",
    variance: str = "small",
    clip: tuple[float, float] | None = None,
    output: OutputAffine | None = None,
    defaults: Defaults | None = None,
    name: str | None = None,
    resume: bool = False,
    stop: Callable[[], bool] = lambda: False,
    progress: bool = False,
    cpu: bool = False,
    accelerator: Accelerator | None = None,
) -> Run:
    """Train a network and write a run folder; afterwards `network` holds the averaged weights, in eval mode.

    network: any module with `forward(x (B, *S), t (B,), **condition) -> (B, *S)`, with twice the channels (the first
    axis of a sample) for a learned variance. One of the package's own, or any with a `spec()` that `build_network`
    understands, can later be loaded from the folder alone.
    dataset: an array (N, *S), anything indexable with a length that gives x (*S) or (x, dict of condition tensors),
    or a `Data`, which also knows clip and output, and classes and nulls of the conditions. output: from the network's
    range to the user's units; by default they are the data set's. clip, prediction, variance, defaults: as in
    `Description`. resume, stop: see `Trainer.fit`. accelerator: one of your own, or else one is made for this call.
    """
    data = as_data(dataset, clip, output)
    description = Description(
        name=name or Path(out).resolve().name,
        spec=spec_of(network),
        schedule=schedule,
        prediction=prediction,
        variance=variance,
        clip=data.clip,
        sample_shape=data.sample_shape,
        output=data.output,
        conditions=find_conditions(data),
        defaults=defaults or Defaults("unipc", min(DEFAULT_STEPS, schedule.T), "trailing"),
        data=data.name,
        training=config or TrainConfig(),
        listing=getattr(data.dataset, "listing", None),
        levels=data.levels,
    )
    run_trainer(network, data, description, Path(out), accelerator, cpu, resume=resume, stop=stop, progress=progress)
    return load_run(out, network=network)


def run_trainer(
    network: nn.Module,
    data: Data,
    description: Description,
    out: Path,
    accelerator: Accelerator | None = None,
    cpu: bool = False,
    **options: Any,
) -> int:
    """Make an accelerator where none is given, train, and return the number of steps done."""
    if accelerator is not None:
        return Trainer(network, data.dataset, description, out, accelerator).fit(**options)
    shared = bool(AcceleratorState._shared_state)
    try:
        own = Accelerator(mixed_precision=description.training.mixed_precision, cpu=cpu)
        return Trainer(network, data.dataset, description, out, own).fit(**options)
    finally:
        if not shared:  # accelerate keeps precision and device for the whole process otherwise
            AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())


def as_data(dataset: Any, clip: tuple[float, float] | None = None, output: OutputAffine | None = None) -> Data:
    """Describe what the caller gave as data set."""
    if isinstance(dataset, Data):
        return replace(dataset, output=output or dataset.output, clip=clip or dataset.clip)
    if isinstance(dataset, np.ndarray):
        dataset = torch.from_numpy(dataset)
    if len(dataset) == 0:
        raise ValueError("dataset: got no samples, expected at least one")
    shape = tuple(Batches(dataset, 1, 0).first(1)[0].shape[1:])
    name = "array" if isinstance(dataset, Tensor) else type(dataset).__name__
    return Data(name, dataset, shape, output or AS_GIVEN, clip)


def spec_of(network: nn.Module) -> dict[str, Any] | None:
    """How to build the network again, where it can tell."""
    spec = getattr(network, "spec", None)
    return spec() if callable(spec) else None


def find_conditions(data: Data) -> tuple[Condition, ...]:
    """The condition tensors that come with the samples, with what the data set says of them."""
    tensors = Batches(data.dataset, 1, 0).first(1)[1]
    found = {
        name: Condition(name, tuple(value.shape[1:]), str(value.dtype).removeprefix("torch."))
        for name, value in tensors.items()
    }
    for said in data.conditions:
        if found.get(said.name) != replace(said, classes=None, null=None):
            got = f"{said.dtype} {said.shape}"
            raise ValueError(f"conditions: {said.name}: got {got}, but the samples come with {_brief(found)}")
    return tuple({**found, **{said.name: said for said in data.conditions}}.values())


def _brief(conditions: Mapping[str, Condition]) -> str:
    return ", ".join(f"{c.name} of {c.dtype} {c.shape}" for c in conditions.values()) or "none"
