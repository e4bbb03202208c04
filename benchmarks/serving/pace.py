"""What samplers need for requests of the mix: alone, and in batches that are always full."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from benchmarks.serving.load import LIMIT, MEAN_STEPS, MIX, Kind, in_closed_loop
from ddpm_deploy import Sampler
from ddpm_deploy.serve import Engine, Handle

IDLE_S = 0.02
BUDGET_S = 1.0  # for each kind and batch; one call takes longer where it must
ROUNDS = 3, 12, 48  # of an engine's closed loop, as many as the budget allows


@dataclass(frozen=True)
class Pace:
    """alone_s: latency of each kind on a sampler that was idle. full_s: by batch, one of each kind drawn in it, while
    all of `streams` samplers draw."""

    alone_s: tuple[float, ...]
    full_s: Mapping[int, tuple[float, ...]]
    streams: int = 1

    def useful(self, alone_s: float) -> int:
        """The largest batch in which one of each kind still takes at most LIMIT times `alone_s`."""
        return max(batch for batch, seconds in self.full_s.items() if batch == 1 or sum(seconds) <= LIMIT * alone_s)

    def ceiling(self, batch: int) -> float:
        """Requests a second of batches that are always full and never wait, at the best size up to `batch`."""
        return max(self.per_s(size) for size in self.full_s if size <= batch)

    def per_s(self, batch: int) -> float:
        """Requests a second at that batch of each stream."""
        return self.streams * batch * len(MIX) / sum(self.full_s[batch])


def in_words(way: Sequence[Sampler]) -> str:
    """How many samplers draw side by side."""
    return "sampler" if len(way) == 1 else f"{len(way)} streams"


def measure_pace(samplers: Sequence[Sampler], batches: Sequence[int], budget_s: float = BUDGET_S) -> Pace:
    """Of as many calls as the budget allows. Alone is the median, on the first sampler while the others are idle; full
    is the mean, as the time of all calls is what a rate comes from."""
    for sampler in samplers:
        for kind in MIX:
            sampler.sample(1, solver=kind.solver, steps=kind.steps)
    alone = tuple(statistics.median(_calls_s(samplers[:1], kind, 1, budget_s, IDLE_S)) for kind in MIX)
    full = {
        batch: tuple(statistics.fmean(_calls_s(samplers, kind, batch, budget_s)) for kind in MIX) for batch in batches
    }
    return Pace(alone, full, len(samplers))


def _calls_s(samplers: Sequence[Sampler], kind: Kind, batch: int, budget_s: float, idle_s: float = 0.0) -> list[float]:
    """Of each call, while all samplers make them."""
    until = time.perf_counter() + budget_s

    def seconds(sampler: Sampler) -> list[float]:
        found: list[float] = []
        while not found or time.perf_counter() < until:
            time.sleep(idle_s)
            begin = time.perf_counter()
            sampler.sample(batch, solver=kind.solver, steps=kind.steps, seed=len(found), batch_size=batch)
            found.append(time.perf_counter() - begin)
        return found

    with ThreadPoolExecutor(len(samplers)) as pool:
        return [second for found in pool.map(seconds, samplers) for second in found]


def engine_steps(
    samplers: Sequence[Sampler], batches: Sequence[int] = (1, 2, 4, 8, 16, 32), budget_s: float = BUDGET_S
) -> dict[int, float]:
    """Seconds of a call of an engine, with all that it does in between, by how many samples share one in each stream.

    Of requests of the mix, so many always under way, up to the largest batch that it makes.
    """
    with Engine(samplers) as engine:
        engine.warmup()
        sizes = sorted({min(batch, engine.widest) for batch in batches})
        return {size: _step_s(engine, size, len(samplers), budget_s) for size in sizes}


def _step_s(engine: Engine, size: int, streams: int, budget_s: float) -> float:
    def submit(kind: Kind, seed: int) -> Handle:
        return engine.submit(solver=kind.solver, steps=kind.steps, seed=seed)

    at_once = size * streams
    for rounds in ROUNDS:
        begin = time.perf_counter()
        rate = in_closed_loop(submit, at_once, rounds * at_once)
        if time.perf_counter() - begin > budget_s / 4:
            break
    return at_once / (rate * MEAN_STEPS)
