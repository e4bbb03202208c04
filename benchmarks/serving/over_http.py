"""The same load through HTTP: what the service costs beside the sampler in process, and LitServe beside it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.serving.goodput import search, steps_between
from benchmarks.serving.load import LIMIT, MIX, Trace, Trial
from benchmarks.serving.pace import IDLE_S, in_words
from benchmarks.serving.processes import Service, body, litserve, our_service
from ddpm_deploy import Sampler

BATCH, SOLVER, STEPS = 16, "unipc", 12
AT_ONCE = 2  # requests, so that the next batch is there when one is drawn
CAPACITY = 4096
ALONE_S = 1.0  # for each kind
GUESS_OURS, GUESS_LITSERVE = 0.5, 0.15  # of the ceiling
Say = Callable[..., object]
Serve = Callable[..., AbstractContextManager[Service]]


@dataclass(frozen=True)
class Http:
    """A bundle served by processes of their own. ceiling: of the batches, requests a second. n: of a trial.

    streams: of our service; LitServe is tried with one worker and with as many.
    """

    bundle: Path
    threads: int
    streams: int
    ceiling: float
    n: int
    ratio: float
    say: Say

    def say_throughput(self, samplers: Sequence[Sampler], requests: int, target: float | None) -> None:
        """Pictures a second in large requests, through HTTP and by the same samplers here, in balanced order."""
        here: list[float] = []
        there: list[float] = []
        with our_service(self.bundle, self.threads, "--streams", str(self.streams)) as service:
            check_service(service)
            for order in ("here", "there", "there", "here"):
                if order == "here":
                    here.append(_in_process(samplers, requests))
                else:
                    there.append(_through(service, requests))
        share = statistics.mean(there) / statistics.mean(here)
        what = f"{SOLVER} {STEPS}, {BATCH} pictures a request"
        self.say(
            figure=f"throughput, {what}", contender=in_words(samplers), value=statistics.mean(here), unit="pictures/s"
        )
        self.say(figure=f"throughput, {what}", contender="our service", value=statistics.mean(there), unit="pictures/s")
        goal = {} if target is None else {"target": f"≥ {100 * target:g}", "met": share >= target}
        self.say(figure="through HTTP, of in process", contender="our service", value=100 * share, unit="%", **goal)

    def say_goodput(self) -> dict[str, float]:
        """Ours and LitServe, one picture a request, each alone on the machine."""
        rates: dict[str, float] = {}
        alone_s: list[float] | None = None
        for name, served, options, guess in self._contenders():
            with served(self.bundle, self.threads, *options) as service:
                check_service(service)
                alone_s = alone_s or _alone_s(service)
                rates[name] = self._goodput(service, guess, alone_s)
            self.say(
                figure=f"goodput through HTTP, 99 % within {LIMIT:g}x of alone", contender=name,
                value=rates[name], unit="requests/s", n=self.n, remark="alone is our service, idle",
            )  # fmt: skip
        return rates

    def _contenders(self) -> Iterator[tuple[str, Serve, Sequence[str], float]]:
        yield "our service", our_service, ("--streams", str(self.streams), "--capacity", str(CAPACITY)), GUESS_OURS
        for workers in sorted({1, self.streams}):
            name = "LitServe" if workers == 1 else f"LitServe, {workers} workers"
            yield name, litserve, ("--workers", str(workers)), GUESS_LITSERVE

    def _goodput(self, service: Service, guess: float, alone_s: Sequence[float]) -> float:
        trace = Trace.drawn(self.n, seed=300)
        steps = steps_between(self.ceiling, self.ratio)
        return search(lambda rate: service.offer(trace, rate, alone_s), steps, guess * self.ceiling).rate

    def say_overload(self, base: float, seconds: float, capacity: int) -> None:
        """A service that holds few pictures, at a rate that it can answer and at ten times that."""
        found: dict[float, tuple[Trial, list[float]]] = {}
        with our_service(
            self.bundle, self.threads, "--streams", str(self.streams), "--capacity", str(capacity)
        ) as service:
            alone_s = _alone_s(service)
            for times in (1.0, 10.0):
                rate = times * base
                trace = Trace.drawn(max(30, int(rate * seconds)), seed=400)
                found[times] = service.flood(trace, rate, alone_s)
            check_service(service)
        peak = max(trial.in_time_per_s for trial, _ in found.values())
        worst, refused_s = found[10.0]
        name = f"our service, capacity {capacity}"
        for times, (trial, refused) in found.items():
            self.say(
                figure=f"in time through HTTP at {times * base:.3g} requests/s", contender=name,
                value=trial.in_time_per_s, unit="requests/s", n=len(trial.kinds), remark=_what_came(trial, refused),
            )  # fmt: skip
        share, p99 = worst.in_time_per_s / peak, float(np.percentile(refused_s, 99)) if refused_s else 0.0
        self.say(
            figure="in time through HTTP at 10x overload, of the peak", contender=name, value=100 * share, unit="%",
            target="≥ 95", met=share >= 0.95,
        )  # fmt: skip
        self.say(
            figure="p99 of refusals through HTTP at 10x overload", contender=name, value=1e3 * p99, unit="ms",
            target="< 50", met=p99 < 0.05, n=len(refused_s),
        )  # fmt: skip


def _what_came(trial: Trial, refused_s: Sequence[float]) -> str:
    answered = int(np.sum(np.isfinite(trial.latency_s)))
    silent = len(trial.kinds) - answered - len(refused_s)
    return f"pictures {answered}, refused {len(refused_s)}" + (f", connection lost {silent}" if silent else "")


def check_service(service: Service) -> None:
    """ValueError unless it sends a picture."""
    if not service.post(**body(0, seed=1))["data"][0]["b64_json"]:
        raise ValueError(f"{service.name}: sent no picture")


def _alone_s(service: Service) -> list[float]:
    """The median latency of each kind, asked for when the service was idle."""
    return [_median_s(service, kind) for kind in range(len(MIX))]


def _median_s(service: Service, kind: int) -> float:
    seconds: list[float] = []
    until = time.perf_counter() + ALONE_S
    while len(seconds) < 2 or time.perf_counter() < until:
        time.sleep(IDLE_S)
        begin = time.perf_counter()
        service.post(**body(kind, seed=len(seconds)))
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def _in_process(samplers: Sequence[Sampler], requests: int) -> float:
    """Pictures a second, while each sampler draws a request."""

    def draw(sampler: Sampler, seeds: range) -> None:
        for seed in seeds:
            sampler.sample(BATCH, solver=SOLVER, steps=STEPS, seed=seed, batch_size=BATCH)

    streams = len(samplers)
    begin = time.perf_counter()
    with ThreadPoolExecutor(streams) as threads:
        shares = [range(i, requests, streams) for i in range(streams)]
        for done in [threads.submit(draw, *each) for each in zip(samplers, shares, strict=True)]:
            done.result()
    return requests * BATCH / (time.perf_counter() - begin)


def _through(service: Service, requests: int) -> float:
    """Pictures a second."""
    begin = time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as clients:
        answers = [
            clients.submit(service.post, n=BATCH, solver=SOLVER, steps=STEPS, seed=seed) for seed in range(requests)
        ]
        pictures = sum(len(answer.result()["data"]) for answer in answers)
    assert pictures == requests * BATCH
    return requests * BATCH / (time.perf_counter() - begin)
