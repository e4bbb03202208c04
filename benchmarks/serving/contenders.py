"""Three ways to serve requests on samplers: in flight, whole requests in batches, and one after another."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.serving.load import LIMIT, MIX, Answer, Kind
from ddpm_deploy import Sampler
from ddpm_deploy.noise import initial_noise
from ddpm_deploy.serve import Engine

IN_FLIGHT, WHOLE, ONE_BY_ONE = "in-flight batching", "whole-request batching", "one after another"

Array = NDArray[np.float32]
Waiting = tuple["Future[Array]", Kind, int, float]


class Contender(Protocol):
    """Whoever answers requests."""

    name: str

    def submit(self, kind: Kind, seed: int) -> Answer: ...

    def close(self) -> None: ...


class InFlight:
    """The engine of this package, as it comes."""

    name = IN_FLIGHT

    def __init__(self, samplers: Sequence[Sampler], capacity: int = 4096) -> None:
        self._engine = Engine(samplers, capacity=capacity)
        self._engine.warmup()

    def submit(self, kind: Kind, seed: int) -> Answer:
        """Ask for one picture."""
        return self._engine.submit(solver=kind.solver, steps=kind.steps, seed=seed)

    def close(self) -> None:
        self._engine.close()


class Batches:
    """Draws whole requests in batches of one plan, as a dynamic batcher in front of a sampler does.

    When a sampler is free, the plan whose turn it is gets all its waiting requests drawn, at most `widest`. Batches
    of one plan are the stronger kind: padded to the longest plan, 4 steps would cost and take what 50 do. Nor does it
    help to wait for a batch to fill: while one is drawn the next one gathers. turn: which plan is next, by the arrival
    and the kind of its first request.
    """

    def __init__(
        self,
        samplers: Sequence[Sampler],
        name: str,
        widest: int,
        turn: Callable[[float, Kind], float] = lambda at, kind: at,
    ) -> None:
        self.name = name
        self._widest, self._turn = widest, turn
        self._plans = {kind: samplers[0].plan(kind.solver, kind.steps) for kind in MIX}
        self._queues: dict[Kind, deque[Waiting]] = {kind: deque() for kind in MIX}
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [threading.Thread(target=self._work, args=(s,), name=name, daemon=True) for s in samplers]
        for thread in self._threads:
            thread.start()

    def submit(self, kind: Kind, seed: int) -> Answer:
        """Ask for one picture."""
        future: Future[Array] = Future()
        with self._changed:
            self._queues[kind].append((future, kind, seed, time.perf_counter()))
            self._changed.notify()
        return future

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self, sampler: Sampler) -> None:
        while batch := self._next_batch():
            batch = [waiting for waiting in batch if waiting[0].set_running_or_notify_cancel()]
            if batch:
                self._draw(sampler, batch)

    def _next_batch(self) -> list[Waiting]:
        """Wait for requests; none when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or any(self._queues.values()))
            if self._closed:
                return []
            first = min((queue[0] for queue in self._queues.values() if queue), key=lambda w: self._turn(w[3], w[1]))
            queue = self._queues[first[1]]
            return [queue.popleft() for _ in range(min(len(queue), self._widest))]

    def _draw(self, sampler: Sampler, batch: Sequence[Waiting]) -> None:
        shape = sampler.manifest.sample_shape
        x_T = np.concatenate([initial_noise(seed, [0], shape) for _, _, seed, _ in batch])
        try:
            samples = sampler.sample(x_T=x_T, plan=self._plans[batch[0][1]], batch_size=len(batch))
        except Exception as error:
            for future, *_ in batch:
                future.set_exception(error)
            return
        for (future, *_), sample in zip(batch, samples, strict=True):
            future.set_result(sample[None])


def one_by_one(sampler: Sampler) -> Batches:
    """Each request alone, in the order of arrival."""
    return Batches([sampler], ONE_BY_ONE, 1)


def oldest_first(samplers: Sequence[Sampler], widest: int) -> Batches:
    """Whole requests; the plan that has waited longest is next, as in Triton's dynamic batcher."""
    return Batches(samplers, f"{WHOLE}, oldest first", widest)


def due_first(samplers: Sequence[Sampler], widest: int, alone_s: Sequence[float]) -> Batches:
    """Whole requests; the plan that must be answered first is next."""
    allowed = {kind: LIMIT * seconds for kind, seconds in zip(MIX, alone_s, strict=True)}
    return Batches(samplers, f"{WHOLE}, due first", widest, lambda at, kind: at + allowed[kind])


def check_pictures(sampler: Sampler, contender: Contender, seeds: int = 4) -> None:
    """ValueError unless a contender draws, in company, what the sampler draws alone."""
    answers = [(kind, seed, contender.submit(kind, seed)) for seed in range(seeds) for kind in MIX]
    for kind, seed, answer in answers:
        expected = sampler.sample(1, solver=kind.solver, steps=kind.steps, seed=seed)
        if not np.allclose(answer.result(600), expected, rtol=0, atol=1e-4):
            raise ValueError(f"{contender.name}: {kind} of seed {seed} is not the picture that the sampler draws alone")
