"""How good the pictures are, by solver and evaluations: the digits model only, which has a judge of real digits.

A small classifier of real digits says how sure it is of generated ones. So fewer evaluations are claimed as a gain only
where the judge is as sure of them as of the paper's thousand, paired by their seeds: the 95 % interval of what is lost
has to lie within `EQUAL` of [gains.py](../ddpm_deploy/bench/report/gains.py), 0.05 of this probability.
"""

from __future__ import annotations

import pytest

from benchmarks.harness import Bench
from benchmarks.specs import Options, Spec
from ddpm_deploy.bench.truth import SEED

FIGURE = "mean top probability of a classifier of real digits"
PLANS = (("unipc", 4), ("unipc", 6), ("unipc", 8), ("unipc", 12), ("unipc", 25), ("ddim", 12), ("ddim", 50))
CHAIN = ("ddpm", 1000)
COUNT, COUNT_FULL = 200, 500
BATCH = 100


def specs(options: Options) -> list[Spec]:
    """Solvers by steps on the fastest exact backend."""
    if options.model != "digits" or not options.own("onnxruntime"):
        return []
    plans = [*PLANS, *([CHAIN] if options.full else [])]
    return [Spec("quality", "quality", "onnxruntime", "fp32", BATCH, solver=name, steps=steps) for name, steps in plans]


def test_quality(spec: Spec, bench: Bench) -> None:
    pytest.importorskip("sklearn", reason="the judge of digits needs scikit-learn; pip install scikit-learn")
    from ddpm_deploy.evaluate.digits import DigitJudge

    sampler = bench.sampler(spec.contender, spec.precision)
    judge = bench.made_once("judge", DigitJudge)
    count = COUNT_FULL if bench.options.full else COUNT
    plan = sampler.plan(spec.solver, spec.steps)
    confidence = judge.confidence(sampler.sample(count, plan=plan, seed=SEED, batch_size=BATCH))
    bench.note("quality", contender=spec.label, solver=spec.solver, steps=spec.steps, nfe=plan.nfe, figure=FIGURE,
               value=confidence.mean(), baseline=judge.real.top_probability, n=count,
               samples=confidence.round(4).tolist())  # fmt: skip
    assert 0.5 < confidence.mean() <= 1
