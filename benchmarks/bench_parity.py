"""How far every backend is from the float32 reference: step by step, and along a trajectory of its own."""

from __future__ import annotations

import pytest

from benchmarks.harness import Bench
from benchmarks.specs import Options, Spec, own_contenders
from ddpm_deploy.bench.truth import SAMPLES, follow

PLANS = (("unipc", 12), ("ddim", 50))
CHAIN = ("ddpm", 1000)


def specs(options: Options) -> list[Spec]:
    """Every own contender but the reference; the thousand steps of DDPM only for small networks, or in full."""
    plans = [*PLANS, *([CHAIN] if options.full and options.model != "celebahq256" else [])]
    return [
        Spec("parity", "parity", backend, precision, SAMPLES, solver=solver, steps=steps)
        for solver, steps in plans
        for backend, precision in own_contenders(options)
        if (backend, precision) != ("torch", "fp32")
    ]


def test_parity(spec: Spec, bench: Bench) -> None:
    with bench.skipping(spec):
        sampler = bench.sampler(spec.contender, spec.precision)
        comparison, failures = follow(bench.truth, sampler, sampler.plan(spec.solver, spec.steps), spec.precision)
        bench.note(
            "parity_curves",
            contender=spec.label,
            solver=f"{spec.solver}, {spec.steps} steps",
            t=comparison["t"],
            prediction_relative_l2=comparison["prediction_relative_l2"],
            drift_max_abs=comparison["drift_max_abs"],
            final_max_abs=comparison["final_max_abs"],
            final_psnr_db=comparison["final_psnr_db"],
            weights=bench.model.weights,
        )
        if failures:
            pytest.fail(f"{spec.label}: {'; '.join(failures)}")
