"""A request, checked where it comes in, as the samples that it asks for."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ddpm_deploy.bundle import Manifest
from ddpm_deploy.errors import BackendError
from ddpm_deploy.guidance import without
from ddpm_deploy.job import Job, kept_channels
from ddpm_deploy.plan import Plan
from ddpm_deploy.sampler import Sampler
from ddpm_deploy.serve.handle import Handle
from ddpm_deploy.serve.policy import MAX_PRIORITY, calls_alone, due
from ddpm_deploy.serve.sample import Sample


def samples_of(
    job: Job,
    handle: Handle,
    manifest: Manifest,
    *,
    seed: int,
    start: int,
    priority: int,
    clock: float,
    widest: int,
    numbers: Iterator[int],
) -> list[Sample]:
    """One Sample for each that the job asks for. clock, widest: as in the policy. numbers: of arrival."""
    null = without(job.condition, manifest.conditions)
    weights = None if job.guidance is None else job.guidance.rows(job.plan.t)
    weight_in_memory = -(-math.prod(job.shape) // math.prod(manifest.sample_shape))
    channels, lanes = kept_channels(manifest, job.plan), 1 if weights is None else 2
    return [
        Sample(
            number=next(numbers),
            handle=handle,
            index=i,
            plan=job.plan,
            seed=seed,
            stream=start + i,
            shape=job.shape,
            condition={name: array[i] for name, array in job.condition.items()},
            null={name: array[i] for name, array in null.items()},
            weights=None if weights is None else weights[:, i],
            channels=channels,
            due=due(clock, calls_alone(len(job.plan), (i + 1) * lanes, widest), priority),
            weight_in_memory=weight_in_memory,
        )
        for i in range(job.n)
    ]


def check_samplers(samplers: Sequence[Sampler]) -> None:
    """ValueError unless they can serve the same requests."""
    if not samplers:
        raise ValueError("samplers: got none, expected at least one")
    first = samplers[0].manifest
    for name in ("model", "sample_shape", "size_multiple", "prediction", "variance", "conditions"):
        if any(getattr(sampler.manifest, name) != getattr(first, name) for sampler in samplers):
            raise ValueError(f"samplers: got several kinds of {name}, expected one model; make an engine for each")


def check_process(pid: int) -> None:
    """BackendError in a fork of the process that made the engine."""
    if os.getpid() != pid:
        raise BackendError(
            f"engine: made in process {pid}, used in its fork {os.getpid()}, where its threads do not exist; "
            "make it in the child"
        )


def check_plan(plan: Plan, manifest: Manifest) -> None:
    """ValueError for a plan that the network's output does not suffice for."""
    if plan.log_variance is not None and manifest.variance != "learned":
        raise ValueError(f"plan: got {plan.solver!r} with a learned variance, but the model predicts none")


def check_streams(seed: Any, start: Any, n: int) -> None:
    """ValueError unless all n samples have noise: whole numbers from 0 to 2^64 - 1."""
    for name, value, count in (("seed", seed, 1), ("start", start, n)):
        if not is_whole(value) or not 0 <= value <= 2**64 - count:
            raise ValueError(f"{name}: got {value!r}, expected a whole number from 0 to {2**64 - count}")


def check_terms(priority: Any, deadline_s: Any, wait_s: Any, preview_every: Any) -> None:
    """ValueError for what `Engine.submit` does not take."""
    if not is_whole(priority) or abs(priority) > MAX_PRIORITY:
        raise ValueError(f"priority: got {priority!r}, expected a whole number from -{MAX_PRIORITY} to {MAX_PRIORITY}")
    if deadline_s is not None and not (_is_time(deadline_s) and deadline_s > 0):
        raise ValueError(f"deadline_s: got {deadline_s!r}, expected a number of seconds above 0, or None")
    if not _is_time(wait_s):
        raise ValueError(f"wait_s: got {wait_s!r}, expected a number of seconds of at least 0")
    if not is_whole(preview_every) or preview_every < 0:
        raise ValueError(f"preview_every: got {preview_every!r}, expected a whole number of steps, 0 for none")


def is_whole(value: Any) -> bool:
    """Whether it is an integer, which a bool is not meant to be."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
