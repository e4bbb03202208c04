"""What ours is held against: the host loops that one writes without us, around eager, compiled and exported networks.

Where diffusers is installed, its network and schedulers are used; where not, our own module in a loop over the rows of
the plan, in torch on the device, and the names say so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.gpu.asked import Group
from benchmarks.gpu.models import network_of
from benchmarks.gpu.paths import Array, OwnNoise, Path
from benchmarks.gpu.subject import Subject
from benchmarks.models import KEPT
from benchmarks.peers import (
    COMPILED,
    EAGER,
    ONNXRUNTIME,
    STEPS,
    TENSORRT,
    TENSORRT_RTX,
    PeerUnavailable,
    Setting,
    open_picture,
)
from benchmarks.peers.pictures import NETWORKS, SOLVERS, Solver
from ddpm_deploy.backends.torch import AUTOCAST, tf32
from ddpm_deploy.bench.truth import SEED, noise_for
from ddpm_deploy.job import plan_settings
from ddpm_deploy.plan import Plan
from ddpm_deploy.solvers import make_plan

if TYPE_CHECKING:
    from torch import Tensor

    Network = Callable[[Tensor, Tensor], Tensor]

PIPELINE = "diffusers DDPMPipeline"
EAGER_LOOP, COMPILED_LOOP = "diffusers eager loop", "torch.compile loop"
PLAIN = {  # plain exports under a runtime, and the precisions that one gets there
    ONNXRUNTIME: ("fp32", "fp16"),
    TENSORRT: ("fp32", "fp16", "bf16"),
    TENSORRT_RTX: ("fp32", "fp16", "bf16"),
}
ENGINE_LOOPS = tuple(f"{name} loop" for name in (TENSORRT, TENSORRT_RTX))
OUR_EAGER, OUR_COMPILED = "eager loop over our network", "torch.compile loop over our network"
EAGERS, COMPILEDS = (EAGER_LOOP, PIPELINE, OUR_EAGER), (COMPILED_LOOP, OUR_COMPILED)
SECONDS = {**dict.fromkeys(COMPILEDS, 100.0), **dict.fromkeys(ENGINE_LOOPS, 60.0)}  # where nothing is known yet

Open = Callable[[Group, Subject], Path]


def peers_of(group: Group, *, compiles: bool) -> dict[str, Open]:
    """Those of a group, by name. compiles: whether torch.compile is among them."""
    if find_spec("diffusers") is None:
        found: dict[str, Open] = {OUR_EAGER: partial(open_rows, compile_it=False)}
        return found | ({OUR_COMPILED: partial(open_rows, compile_it=True)} if compiles else {})
    found = {PIPELINE: open_pipeline} if group.solver == "ddpm" else {EAGER_LOOP: partial(open_loop, step=EAGER)}
    plain = [name for name, precisions in PLAIN.items() if group.precision in precisions]
    found |= {f"{name} loop": partial(open_loop, step=name) for name in plain}
    return found | ({COMPILED_LOOP: partial(open_loop, step=COMPILED)} if compiles else {})


@dataclass(frozen=True)
class Loop:
    """A host loop: from a network and x_T to samples. times: what it passes to the network for each t of its plan."""

    run: Callable[[Network, Tensor], Tensor]
    times: Mapping[float, Tensor]


def open_loop(group: Group, subject: Subject, *, step: str) -> Path:
    """diffusers' scheduler around diffusers' network. step: a key of `pictures.NETWORKS`."""
    setting = setting_of(group, subject)
    STEPS[step].require(setting)
    bundle = subject.model.bundle
    how = SOLVERS[group.solver](bundle, setting)
    if how.ours is None:
        raise PeerUnavailable(f"cannot be compared: {how.parity}")
    open_network, _ = NETWORKS[step]
    noise = generated(group, subject) if group.solver == "ddpm" else None
    loop = _scheduled(how, subject.device, draws=noise is not None)
    note = f"{step} in a loop of diffusers' {type(how.scheduler).__name__}; {how.parity}"
    return _path(group, subject, _plan_of(subject, how.ours), open_network(bundle, setting), loop, note, noise)


def generated(group: Group, subject: Subject) -> OwnNoise:
    """The seed's own x_T, and what a scheduler then draws row by row from a generator of the device."""
    import torch

    x_T, _ = noise_for(subject.model.bundle.manifest, group.batch)
    generator = torch.Generator(subject.device).manual_seed(SEED)

    def z(row: int) -> Array:
        drawn: Array = torch.randn(x_T.shape, generator=generator, device=subject.device).cpu().numpy()
        return drawn

    return OwnNoise("a generator of the device", x_T, z)


def open_rows(group: Group, subject: Subject, *, compile_it: bool) -> Path:
    """Our own module, channels last under autocast, in a loop over the plan's rows."""
    manifest = subject.model.bundle.manifest
    settings = plan_settings(manifest, group.solver, group.steps, None, None, {})
    plan = make_plan(schedule=manifest.schedule, **settings)
    z = _noise(plan, subject, group.batch)
    note = f"diffusers is not installed: our module, {'max-autotune, CUDA graphs' if compile_it else 'eager'}"
    loop = _by_rows(plan, subject.device, z)
    return _path(group, subject, plan, _module(group, subject, compile_it), loop, note)


def open_pipeline(group: Group, subject: Subject) -> Path:
    """diffusers' own pipeline with its own noise, which the reference then starts from."""
    picture = open_picture(PIPELINE, subject.model.bundle, setting_of(group, subject))
    assert picture.own_noise is not None
    x_T, _ = noise_for(subject.model.bundle.manifest, group.batch)
    return Path(
        draw=lambda: picture(x_T, SEED),
        plan=_plan_of(subject, picture.ours or {}),
        note=f"{picture.description}; {picture.parity}",
        noise=OwnNoise(PIPELINE, *picture.own_noise(group.batch, SEED)),
        close=picture.close,
    )


def setting_of(group: Group, subject: Subject) -> Setting:
    """How the benchmarks' peers are opened for a group; TF32 is float32 with a switch."""
    precision = "fp32" if group.precision == "tf32" else group.precision
    where: Any = {"device": subject.device, "threads": subject.threads, "cache": KEPT / "plain"}
    return Setting(batch=group.batch, precision=precision, steps=group.steps, **where)


def _path(
    group: Group, subject: Subject, plan: Plan, network: Network, loop: Loop, note: str, noise: OwnNoise | None = None
) -> Path:
    import torch

    device, narrow = subject.device, group.precision == "tf32"
    x_T, _ = noise_for(subject.model.bundle.manifest, group.batch)

    def draw() -> Array:
        with tf32(narrow), torch.inference_mode():
            samples: Array = loop.run(network, torch.from_numpy(x_T).to(device)).contiguous().cpu().numpy()
        return samples

    def evaluate(feeds: Mapping[str, Array]) -> Array:
        with tf32(narrow), torch.inference_mode():
            x = torch.from_numpy(np.ascontiguousarray(feeds["x"])).to(device)
            prediction: Array = network(x, loop.times[float(feeds["t"][0])]).contiguous().cpu().numpy()
        return prediction

    return Path(draw, plan, evaluate, note, noise)


def _scheduled(how: Solver, device: str, *, draws: bool) -> Loop:
    """As diffusers' documentation has it. draws: whether its scheduler draws noise, here on the device."""
    import torch

    scheduler = how.scheduler

    def run(network: Network, x: Tensor) -> Tensor:
        scheduler.set_timesteps(how.steps, device=device)
        options = {**how.options, "generator": torch.Generator(device).manual_seed(SEED)} if draws else how.options
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t), t, x, **options).prev_sample
        return x

    scheduler.set_timesteps(how.steps, device=device)
    return Loop(run, {float(t): t for t in scheduler.timesteps})


def _by_rows(plan: Plan, device: str, z: Tensor | None) -> Loop:
    """The rows as products and sums of tensors, each launched by the host. z: (N, B, *S) where the plan draws noise."""
    import torch

    times = torch.tensor(plan.t, dtype=torch.float32, device=device)

    def run(network: Network, x: Tensor) -> Tensor:
        state = [x] * len(plan.state)
        for i, ((p_x, p_m), (low, high), update) in enumerate(zip(plan.predict, plan.clip, plan.update, strict=True)):
            m = network(state[0], times[i])
            d = (float(p_x) * state[0] + float(p_m) * m).clamp(float(low), float(high))
            images = [*state, d, m, *([z[i]] if z is not None else [])]
            state = [_weighted(weights, images) for weights in update]
        return state[0]

    return Loop(run, {float(np.float32(t)): times[i] for i, t in enumerate(plan.t)})


def _weighted(weights: Array, images: Sequence[Tensor]) -> Tensor:
    """The sum of those that count; z, the last, is only there where the plan draws noise."""
    used = [(float(weight), image) for weight, image in zip(weights, images, strict=False) if weight]
    total = used[0][0] * used[0][1] if used else 0 * images[0]
    for weight, image in used[1:]:
        total = total + weight * image
    return total


def _module(group: Group, subject: Subject, compile_it: bool) -> Network:
    import torch

    dtype, device = AUTOCAST[group.precision], subject.device
    module = network_of(subject.model.bundle).to(device, memory_format=torch.channels_last)
    how: Any = {"fullgraph": True, "dynamic": False}
    fast = torch.compile(module, mode="max-autotune", **how) if compile_it else module
    on = dtype is not None

    def network(x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(torch.device(device).type, dtype=dtype, enabled=on):
            out: Tensor = fast(x.contiguous(memory_format=torch.channels_last), t.expand(len(x)))
        return out.float().clone() if compile_it else out.float()  # a CUDA graph overwrites its output

    return network


def _noise(plan: Plan, subject: Subject, batch: int) -> Tensor | None:
    """z of every row, on the device before anything is timed."""
    import torch

    if plan.is_deterministic:
        return None
    x_T, draw = noise_for(subject.model.bundle.manifest, batch)
    rows = [draw(i) if draws else np.zeros_like(x_T) for i, draws in enumerate(plan.draws_noise)]
    return torch.from_numpy(np.stack(rows)).to(subject.device)


def _plan_of(subject: Subject, ours: Mapping[str, Any]) -> Plan:
    """The plan with which we draw what a peer draws. ours: see `peers.Picture`."""
    manifest, options = subject.model.bundle.manifest, dict(ours)
    solver, timesteps = options.pop("solver"), options.pop("timesteps")
    return make_plan(schedule=manifest.schedule, **plan_settings(manifest, solver, None, None, timesteps, options))
