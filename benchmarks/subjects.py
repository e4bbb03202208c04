"""How contenders become trials: our own backends and the peers, for one evaluation and for whole pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.harness import PLAIN, Bench, Trial
from benchmarks.peers import COMPILED, Setting, open_picture, open_step
from benchmarks.specs import Spec
from ddpm_deploy.bench.record import PEER, TWIN, Parity
from ddpm_deploy.bench.truth import SEED, feeds_for, noise_for
from ddpm_deploy.errors import ParityError
from ddpm_deploy.job import example_conditions, plan_settings
from ddpm_deploy.one_file import sample_with_graph
from ddpm_deploy.plan import Plan
from ddpm_deploy.solvers import make_plan

ONE_GRAPH = "onnxruntime, one graph"  # the contender that calls the `sampler` graph once

Feeds = Mapping[str, np.ndarray]


def evaluation(spec: Spec, bench: Bench) -> Trial:
    """One evaluation of the network: host arrays in, host arrays out, all inside of the timed region."""
    feeds = feeds_for(bench.model.bundle.manifest, spec.batch)
    evaluate, synchronise, note = _evaluate(spec, bench)
    return Trial(
        call=lambda: evaluate(feeds),
        judge=lambda: bench.truth.judge(evaluate, spec.batch, spec.precision),
        synchronise=synchronise,
        limit=lambda seconds: bench.percent_of_limit(spec, seconds, 1),
        note=note,
    )


def parity_in_words(contender: str, kind: str, bench: Bench) -> str:
    """Of one float32 evaluation at batch 1, for figures that are no rows; raises ParityError before any is taken."""
    parity = evaluation(Spec("step", "one evaluation", contender, "fp32", 1, kind), bench).judge()
    assert parity is not None
    return f"relative L2 {parity.figures['relative_l2']:.1e} ({parity.weights})"


def _evaluate(spec: Spec, bench: Bench) -> tuple[Callable[[Feeds], np.ndarray], Callable[[], object], str]:
    if spec.kind == PEER:
        key, keep = (spec.contender, spec.precision, spec.batch), spec.contender == COMPILED
        peer = bench.opened(key, lambda: _open_peer(spec, bench), keep)
        return (lambda feeds: peer(feeds["x"], feeds["t"])), peer.synchronise, peer.description
    backend = bench.sampler(spec.contender, spec.precision, twin=spec.kind == TWIN).backend
    (output,) = (tensor.name for tensor in backend.outputs)
    return (lambda feeds: backend.run(feeds)[output]), (lambda: None), ""


def _open_peer(spec: Spec, bench: Bench) -> Any:
    return open_step(spec.contender, bench.model.bundle, setting_of(spec, bench))


def setting_of(spec: Spec, bench: Bench) -> Setting:
    """How a peer is opened for a row."""
    options = bench.options
    return Setting(
        batch=spec.batch,
        precision=spec.precision,
        device=options.device,
        threads=options.threads,
        steps=spec.steps or 1,
        cache=PLAIN,
    )


def pictures(spec: Spec, bench: Bench) -> Trial:
    """Whole pictures from a seed to samples in network range on the host."""
    return _peer_pictures(spec, bench) if spec.kind == PEER else _own_pictures(spec, bench)


def _own_pictures(spec: Spec, bench: Bench) -> Trial:
    draw, plan = _draw_own(spec, bench)
    expected = bench.expected(plan, spec.batch)
    return Trial(
        call=draw,
        judge=lambda: bench.truth.judge_samples(draw(), expected, spec.precision),
        nfe=plan.nfe,
        limit=lambda seconds: bench.percent_of_limit(spec, seconds, plan.nfe),
    )


def _draw_own(spec: Spec, bench: Bench) -> tuple[Callable[[], np.ndarray], Plan]:
    """Through the loop of `Sampler.sample`, or in one call of the `sampler` graph."""
    backend, twin, n = spec.backend, spec.kind == TWIN, spec.batch
    sampler = bench.sampler(backend, spec.precision, twin=twin)
    plan, manifest = sampler.plan(spec.solver, spec.steps), sampler.manifest
    condition = example_conditions(manifest.conditions, n)
    if spec.contender != ONE_GRAPH:
        return lambda: sampler.sample(n, plan=plan, seed=SEED, condition=condition, batch_size=n), plan
    graph = bench.graph(backend, "sampler", spec.precision, twin=twin)
    return lambda: sample_with_graph(graph, plan, *noise_for(manifest, n), condition), plan


def _peer_pictures(spec: Spec, bench: Bench) -> Trial:
    bundle = bench.model.bundle
    key, keep = (spec.contender, spec.precision, spec.batch, spec.steps), spec.contender.startswith(COMPILED)
    peer = bench.opened(key, lambda: open_picture(spec.contender, bundle, setting_of(spec, bench)), keep)
    x_T, _ = noise_for(bundle.manifest, spec.batch)
    return Trial(
        call=lambda: peer(x_T, SEED),
        judge=lambda: _judge_peer(peer, x_T, spec, bench),
        nfe=peer.steps,
        limit=lambda seconds: bench.percent_of_limit(spec, seconds, peer.steps),
        note=f"{peer.description}; {peer.parity}",
    )


def _judge_peer(peer: Any, x_T: np.ndarray, spec: Spec, bench: Bench) -> Parity:
    """Its pictures against the reference's from the same noise, by the plan that is its solver."""
    if peer.ours is None:
        raise ParityError(f"{peer.name}: cannot be compared: {peer.parity}")
    manifest = bench.model.bundle.manifest
    options = dict(peer.ours)
    solver, timesteps = options.pop("solver"), options.pop("timesteps")
    settings = plan_settings(manifest, solver, None, None, timesteps, options)
    plan = make_plan(schedule=manifest.schedule, **settings)
    start, noise = peer.own_noise(spec.batch, SEED) if peer.own_noise else (x_T, noise_for(manifest, spec.batch)[1])
    return bench.truth.judge_samples(peer(x_T, SEED), bench.truth.samples(plan, start, noise), spec.precision)
