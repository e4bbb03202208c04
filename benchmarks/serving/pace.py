"""What the sampler needs for requests of the mix: alone, and in batches that are always full."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.serving.load import LIMIT, MIX, Kind
from ddpm_deploy import Sampler
from ddpm_deploy.serve import Engine

STEADY = Kind("unipc", 12)  # what is drawn to time an engine's calls
IDLE_S = 0.02
BUDGET_S = 1.0  # for each kind and batch; one call takes longer where it must


@dataclass(frozen=True)
class Pace:
    """alone_s: latency of each kind on a sampler that was idle. full_s: by batch, one of each kind drawn in it."""

    alone_s: tuple[float, ...]
    full_s: Mapping[int, tuple[float, ...]]

    @property
    def useful(self) -> int:
        """The largest batch in which a request still takes at most LIMIT times what it takes alone."""
        return max(batch for batch, seconds in self.full_s.items() if sum(seconds) <= LIMIT * sum(self.alone_s))

    @property
    def alone_step_s(self) -> float:
        """Seconds of a step alone, of the kind whose steps are fastest."""
        return min(seconds / kind.steps for seconds, kind in zip(self.alone_s, MIX, strict=True))

    def ceiling(self, batch: int) -> float:
        """Requests a second of batches that are always full and never wait, at the best size up to `batch`."""
        return max(self.per_s(size) for size in self.full_s if size <= batch)

    def per_s(self, batch: int) -> float:
        """Requests a second at that batch."""
        return batch * len(MIX) / sum(self.full_s[batch])


def measure_pace(sampler: Sampler, batches: Sequence[int], budget_s: float = BUDGET_S) -> Pace:
    """Medians of as many calls as the budget allows."""
    for kind in MIX:
        sampler.sample(1, solver=kind.solver, steps=kind.steps)
    alone = tuple(_median_s(sampler, kind, 1, budget_s, IDLE_S) for kind in MIX)
    return Pace(alone, {batch: tuple(_median_s(sampler, kind, batch, budget_s) for kind in MIX) for batch in batches})


def _median_s(sampler: Sampler, kind: Kind, batch: int, budget_s: float, idle_s: float = 0.0) -> float:
    until = time.perf_counter() + budget_s
    seconds: list[float] = []
    while not seconds or time.perf_counter() < until:
        time.sleep(idle_s)
        begin = time.perf_counter()
        sampler.sample(batch, solver=kind.solver, steps=kind.steps, seed=len(seconds), batch_size=batch)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def engine_steps(
    sampler: Sampler, batches: Sequence[int] = (1, 2, 4, 8, 16, 32), budget_s: float = BUDGET_S
) -> dict[int, float]:
    """Seconds of one call of an engine by how many samples share it, up to the largest batch that it makes."""
    with Engine(sampler) as engine:
        engine.warmup()
        widest = engine.widest
        sizes = sorted({min(batch, widest) for batch in batches})
        return {size: _median_step_s(engine, size, budget_s) for size in sizes}


def _median_step_s(engine: Engine, size: int, budget_s: float) -> float:
    until = time.perf_counter() + budget_s
    seconds: list[float] = []
    while not seconds or time.perf_counter() < until:
        begin = time.perf_counter()
        engine.submit(size, solver=STEADY.solver, steps=STEADY.steps, seed=len(seconds)).result()
        seconds.append((time.perf_counter() - begin) / STEADY.steps)
    return statistics.median(seconds)
