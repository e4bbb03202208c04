"""The peers that draw whole pictures: diffusers' pipelines, and its schedulers in loops as its documentation has them.

A pipeline takes no x_T: it draws its start, and DDPM's noise, from a generator of the seed. That noise is known
(`Picture.own_noise`), and from it our sampler draws the same picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.peers import engines
from benchmarks.peers.base import Array, Draw, PeerUnavailable, Picture, Setting, Step, versions_of
from benchmarks.peers.network import ddim_scheduler, ddpm_scheduler, unipc_scheduler
from benchmarks.peers.steps import open_onnxruntime, open_openvino
from benchmarks.peers.torch_networks import compiled, eager, placed
from ddpm_deploy.backends.base import one_line
from ddpm_deploy.bundle import Bundle

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.peers.torch_networks import Network

AGREES = "the same picture as ours from the same noise, to the rounding of diffusers' float32 tables"
UNCLIPPED = f"{AGREES}; neither clips the predicted image, as diffusers' UniPC cannot"
STRIDE = (
    "no plan of ours: diffusers' DDIM takes t - T // N for the timestep before t, which is not the next of its list"
)
PIPELINES = {"ddpm": "DDPMPipeline", "ddim": "DDIMPipeline"}


@dataclass(frozen=True)
class Solver:
    """A scheduler of diffusers, the options of its `step`, and what `Picture` says of it."""

    scheduler: Any
    steps: int
    options: Mapping[str, Any]
    ours: Mapping[str, Any] | None
    parity: str


def _ddpm(bundle: Bundle, setting: Setting) -> Solver:
    scheduler, T = ddpm_scheduler(bundle), bundle.manifest.schedule.T
    return Solver(scheduler, T, {}, {"solver": "ddpm", "timesteps": _timesteps(scheduler, T)}, AGREES)


def _ddim(bundle: Bundle, setting: Setting) -> Solver:
    """The noise is derived from the clipped image, as ours is; by default diffusers keeps what was predicted."""
    scheduler, T = ddim_scheduler(bundle), bundle.manifest.schedule.T
    timesteps, stride = _timesteps(scheduler, setting.steps), T // setting.steps
    right = [t - stride for t in timesteps[:-1]] == list(timesteps[1:]) and timesteps[-1] < stride
    ours = {"solver": "ddim", "timesteps": timesteps} if right else None
    options = {"eta": 0.0, "use_clipped_model_output": True}
    return Solver(scheduler, setting.steps, options, ours, AGREES if right else STRIDE)


def _unipc(bundle: Bundle, setting: Setting) -> Solver:
    scheduler = unipc_scheduler(bundle, setting.order)
    timesteps = _timesteps(scheduler, setting.steps)
    ours = {"solver": "unipc", "timesteps": timesteps, "order": setting.order, "clip": None}
    return Solver(scheduler, setting.steps, {}, ours, UNCLIPPED)


def _timesteps(scheduler: Any, steps: int) -> tuple[int, ...]:
    scheduler.set_timesteps(steps)
    timesteps = tuple(scheduler.timesteps.tolist())
    if len(timesteps) != steps:
        raise PeerUnavailable(f"diffusers makes {len(timesteps)} steps where {steps} are asked for")
    return timesteps


def _as_network(open_step: Callable[[Bundle, Setting], Step]) -> Callable[[Bundle, Setting], Network]:
    """A step between host arrays, where the scheduler computes with tensors."""

    def opened(bundle: Bundle, setting: Setting) -> Network:
        import torch

        step = open_step(bundle, setting)

        def network(x: Tensor, t: Tensor) -> Tensor:
            return torch.from_numpy(step(x.cpu().numpy(), np.full(len(x), float(t), np.float32))).to(setting.device)

        return network

    return opened


SOLVERS = {"ddpm": _ddpm, "ddim": _ddim, "unipc": _unipc}
NETWORKS: dict[str, tuple[Callable[[Bundle, Setting], Network], str]] = {
    "diffusers eager": (eager, "torch"),
    "torch.compile": (compiled, "torch"),
    "ONNX Runtime, plain export": (_as_network(open_onnxruntime), "onnxruntime"),
    "OpenVINO, plain export": (_as_network(open_openvino), "openvino"),
    **{
        title: (partial(engines.engine_network, runtime=runtime), engines.PACKAGES[runtime])
        for runtime, title in engines.TITLES.items()
    },
}


def open_loop(name: str, bundle: Bundle, setting: Setting, *, step: str, solver: str) -> Picture:
    """A loop of `scheduler.step` around a network; one picture is drawn, so that what cannot run or compile fails here.

    step: a key of `NETWORKS`. solver: a key of `SOLVERS`.
    """
    how = SOLVERS[solver](bundle, setting)
    open_network, runtime = NETWORKS[step]
    draw = _loop(open_network(bundle, setting), how, setting)
    try:
        draw(np.zeros((setting.batch, *bundle.manifest.sample_shape), np.float32), 0)
    except Exception as error:
        raise PeerUnavailable(f"{step} failed: {one_line(error)[:300]}") from error
    description = f"{step} in a loop of diffusers' {type(how.scheduler).__name__}, {how.steps} steps"
    versions = versions_of("diffusers", "torch") | versions_of(runtime)
    return Picture(name, setting, solver, how.steps, description, versions, draw, how.ours, how.parity)


def open_pipeline(name: str, bundle: Bundle, setting: Setting, *, solver: str) -> Picture:
    """The pipeline class itself, `output_type="np"`; DDPM over all T timesteps. solver: a key of `PIPELINES`."""
    how = SOLVERS[solver](bundle, setting)
    import diffusers

    pipeline = getattr(diffusers, PIPELINES[solver])(placed(bundle, setting), how.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    shape = bundle.manifest.sample_shape
    return Picture(
        name,
        setting,
        solver,
        how.steps,
        f"diffusers' {PIPELINES[solver]}, {how.steps} steps, output_type='np'",
        versions_of("diffusers", "torch"),
        _pipeline_draw(pipeline, how),
        how.ours,
        f"{how.parity}; the pipeline draws its own noise and clamps the picture to [-1, 1]",
        lambda batch, seed: _generator_noise((batch, *shape), seed),
    )


def _loop(network: Network, how: Solver, setting: Setting) -> Draw:
    import torch

    def draw(x_T: Array, seed: int) -> Array:
        scheduler = how.scheduler
        scheduler.set_timesteps(how.steps, device=setting.device)
        with torch.inference_mode():
            x = torch.from_numpy(x_T).to(setting.device)
            for t in scheduler.timesteps:
                x = scheduler.step(network(x, t), t, x, **how.options).prev_sample
            samples: Array = x.contiguous().cpu().numpy()
        return samples

    return draw


def _pipeline_draw(pipeline: Any, how: Solver) -> Draw:
    import torch

    def draw(x_T: Array, seed: int) -> Array:
        generator = torch.Generator().manual_seed(seed)
        pictures = pipeline(
            len(x_T), generator, num_inference_steps=how.steps, output_type="np", **how.options
        ).images  # (B, H, W, C) in [0, 1]
        return np.ascontiguousarray(2 * pictures.transpose(0, 3, 1, 2) - 1)

    return draw


def _generator_noise(shape: tuple[int, ...], seed: int) -> tuple[Array, Callable[[int], Array]]:
    """What a pipeline draws from a generator of the seed: its start, then z of each row in turn."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def draw(row: int) -> Array:
        z: Array = torch.randn(shape, generator=generator).numpy()
        return z

    return draw(0), draw
