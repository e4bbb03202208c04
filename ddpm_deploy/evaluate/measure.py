"""Measuring one runtime: its bound on real samples, and samples drawn with it. Both go on where they were stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.evaluate.bound import Bound, Evaluate, ReverseChain, Task, measure_row
from ddpm_deploy.evaluate.state import State
from ddpm_deploy.plan import Plan
from ddpm_deploy.sampler import Sampler

Array = NDArray[Any]
Tell = Callable[[int], object]


@dataclass(frozen=True)
class Request:
    """What is to be drawn: n samples of a seed, with conditions (n, ...) and guidance, in batches.

    asked: (n,) classes or (n, k) facts that the conditions say, where that is known.
    """

    n: int
    seed: int
    batch_size: int
    conditions: Mapping[str, Array]
    guidance: float = 1.0
    interval: Sequence[float] | None = None
    asked: Array | None = None

    @property
    def guided(self) -> dict[str, Any]:
        """The weight and its interval, which at a weight of 1 has nothing to say."""
        return {"guidance": self.guidance, "guidance_interval": None if self.guidance == 1 else self.interval}

    def part(self, chunk: slice) -> dict[str, Any]:
        """Arguments of `Sampler.sample` for some of them."""
        given = {name: array[chunk] for name, array in self.conditions.items()}
        return {
            "n": chunk.stop - chunk.start,
            "seed": self.seed,
            "start": chunk.start,
            "condition": given or None,
            **self.guided,
            "batch_size": self.batch_size,
        }


def network_of(sampler: Sampler) -> Evaluate:
    """The network as the bound evaluates it: all channels, no guidance."""
    (output,) = (spec.name for spec in sampler.backend.outputs)
    run = sampler.backend.run
    return lambda feeds: run(feeds)[output]


def encoded(task: Task, sampler: Sampler) -> Task:
    """The same task with the conditions that the sampler's encoder computes, where it has one."""
    if sampler.encoder is None:
        return task
    conditions = sampler.encoder.conditions(task.conditions, len(task.x0))
    return replace(task, conditions={name: np.asarray(array) for name, array in conditions.items()})


def measure_bound(sampler: Sampler, chain: ReverseChain, task: Task, name: str, state: State, tell: Tell) -> Bound:
    """The bound, row by row. name: under which the state keeps it. tell: called with how many evaluations were made."""
    kept = state.load(name)
    terms = np.full((len(chain), len(task.x0), task.draws), np.nan) if kept is None else kept["terms"]
    evaluate, task = network_of(sampler), encoded(task, sampler)
    for row in range(len(chain)):
        if np.isnan(terms[row]).any():
            terms[row] = measure_row(evaluate, chain, task, row)
            state.save(name, {"terms": terms}, last=row + 1 == len(chain))
        tell(task.pairs)
    return Bound.of(chain, task, terms)


def draw(sampler: Sampler, plan: Plan, request: Request, name: str, state: State, tell: Tell) -> tuple[Array, Array]:
    """Samples (n, *S), and the seconds that one took in each batch; arguments as in `measure_bound`."""
    kept, shape = state.load(name), sampler.manifest.sample_shape
    starts = range(0, request.n, request.batch_size)
    samples = np.full((request.n, *shape), np.nan, np.float32) if kept is None else kept["samples"]
    seconds = np.full(len(starts), np.nan) if kept is None else kept["seconds"]
    for k, start in enumerate(starts):
        chunk = slice(start, min(start + request.batch_size, request.n))
        if np.isnan(seconds[k]):
            began = time.perf_counter()
            samples[chunk] = sampler.sample(plan=plan, **request.part(chunk))
            seconds[k] = (time.perf_counter() - began) / (chunk.stop - chunk.start)
            state.save(name, {"samples": samples, "seconds": seconds}, last=k + 1 == len(starts))
        tell((chunk.stop - chunk.start) * plan.nfe)
    return samples, seconds
