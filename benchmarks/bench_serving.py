"""Requests that come when they come: how many of them each way to serve answers in time.

Poisson arrivals of 4, 12 and 50 steps, each as often, in an open loop. In time is what takes at most ten times as long
as the same request alone; a contender holds a rate where 99 % of the requests are. In-flight batching stands beside one
request after another and beside whole requests in batches, on the same samplers, with the same arrivals.

A quick run, of this file alone, has the digits model, one trace, in process: a minute. A full one has three traces,
HTTP, and LitServe.
Of large networks a search would take hours, so only the targets are tried, in full runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import pytest

from benchmarks.harness import Bench
from benchmarks.serving.contenders import IN_FLIGHT, check_pictures
from benchmarks.serving.load import MIX
from benchmarks.serving.over_http import Http
from benchmarks.serving.pace import Pace, engine_steps, measure_pace
from benchmarks.serving.study import FULL, QUICK, Study
from benchmarks.subjects import parity_in_words
from ddpm_deploy import Sampler
from ddpm_deploy.bench.record import OWN
from ddpm_deploy.serve import open_streams

BACKEND = "onnxruntime"
BATCHES, BATCHES_QUICK, BATCHES_SLOW = (1, 2, 4, 8, 12, 16, 20, 24, 32), (1, 8, 16, 24, 32), (1, 2, 4, 8)
SLOW_S = 0.5  # a network on which the requests of the mix take longer than this in all is a large one
FLOOD_SLOW_S = 20.0
SHORT_AT = (0.5, 0.7)  # of the ceiling


@pytest.fixture
def study(bench: Bench, request: pytest.FixtureRequest) -> Iterator[Study]:
    """The samplers, measured once and checked against the reference."""
    if not bench.options.full and not any(Path(__file__).stem in word for word in request.config.args):
        bench.leave_out("serving", "takes a minute; run pytest benchmarks/bench_serving.py, or --full")
    if not bench.options.own(BACKEND):
        bench.leave_out("serving", f"--backends leaves {BACKEND} out")
    if bench.options.model != "digits" and not bench.options.full:
        bench.leave_out("serving", "takes minutes on a large network; only with --full")
    bench.made_once("serving parity", lambda: parity_in_words(BACKEND, OWN, bench))
    streams = bench.opened("serving streams", lambda: Streams(bench), keep=True).samplers
    ways = [(bench.sampler(BACKEND, "fp32"),), streams] if len(streams) > 1 else [streams]
    scale = FULL if bench.options.full else QUICK
    paces = [bench.made_once(f"pace of {len(way)}", partial(_pace, bench, way, scale.traces / 3)) for way in ways]
    step_s = bench.made_once("serving steps", lambda: engine_steps(streams))
    study = Study(ways[-1], dict(zip(ways, paces, strict=True)), scale, partial(bench.note, "serving"), step_s)
    if not bench.sections.get("serving"):
        study.say_pace()
        for kind, seconds in zip(MIX, study.alone_s, strict=True):
            bench.note("serving_alone", solver=kind.solver, steps=kind.steps, alone_s=seconds)
        for batch, seconds in step_s.items():
            bench.note("serving_steps", batch=batch, step_s=seconds, streams=len(streams))
    yield study
    for name, trials in study.trials.items():
        for trial in trials:
            bench.note("serving_trials", contender=name, **trial.facts())


class Streams:
    """Samplers side by side, as the service opens them."""

    def __init__(self, bench: Bench) -> None:
        with ExitStack() as stack:
            opening = open_streams(bench.model.bundle, backend=BACKEND, threads=bench.options.threads)
            self.samplers = tuple(stack.enter_context(opening))
            self.close = stack.pop_all().close


def _pace(bench: Bench, samplers: Sequence[Sampler], budget_s: float) -> Pace:
    first = measure_pace(samplers, (1,), 0.1)
    usual = BATCHES if bench.options.full else BATCHES_QUICK
    return measure_pace(samplers, BATCHES_SLOW if sum(first.alone_s) > SLOW_S else usual, budget_s)


def is_slow(study: Study) -> bool:
    """Whether a search would take hours."""
    return sum(study.alone_s) > SLOW_S


def test_goodput(study: Study, bench: Bench) -> None:
    """The highest rate that each contender holds; of large networks whether the others hold what they should not."""
    for make in study.makers.values():
        with closing(make()) as contender:
            check_pictures(study.sampler, contender, 1 if is_slow(study) else 4)
    if is_slow(study):
        study.say_targets()
        return
    found = study.goodput()
    study.say_goodput(found)
    assert min(found[IN_FLIGHT]) > 0, "no rate held"


def test_short_requests(study: Study) -> None:
    """The 4-step requests while 50-step ones run."""
    if is_slow(study):
        pytest.skip("part of test_goodput on a large network")
    for share in SHORT_AT:
        study.say_short(share * study.ceiling)


def test_overload(study: Study) -> None:
    """Ten times more than can be answered: what is accepted is answered in time, the rest refused at once."""
    if is_slow(study):
        pytest.skip("through HTTP on a large network, which costs nothing there")
    study.say_flood()


def test_http_throughput(study: Study, bench: Bench) -> None:
    """Large requests through HTTP, and the same in process."""
    slow = is_slow(study)
    if not bench.options.full:
        bench.leave_out("serving through HTTP", "only with --full")
    _http(study, bench).say_throughput(study.streams, 4 if slow else 60, 0.97 if slow else None)


def test_http_goodput(study: Study, bench: Bench) -> None:
    """One picture a request through HTTP, beside LitServe."""
    if not bench.options.full or is_slow(study):
        bench.leave_out("LitServe", "only with --full, and not on a large network")
    pytest.importorskip("litserve", reason="litserve is not installed; pip install 'ddpm-deploy[bench]'")
    bench.made_once("serving over HTTP", _http(study, bench).say_goodput)


def test_http_overload(study: Study, bench: Bench) -> None:
    """Ten times more than can be answered, through HTTP."""
    if not bench.options.full:
        bench.leave_out("serving overload through HTTP", "only with --full")
    seconds = FLOOD_SLOW_S if is_slow(study) else study.scale.flood_s
    goodput = {} if is_slow(study) else bench.made_once("serving over HTTP", dict)
    base = goodput.get("our service", study.ceiling)
    _http(study, bench).say_overload(base, seconds, study.capacity)


def _http(study: Study, bench: Bench) -> Http:
    bundle = Path(bench.model.bundle.root)
    scale = study.scale
    return Http(bundle, bench.options.threads, len(study.streams), study.ceiling, scale.n, 1.25, study.say)
