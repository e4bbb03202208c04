"""Every solver against Hugging Face diffusers, state by state, on a denoiser that is known in closed form.

diffusers keeps its tables (and, in some schedulers, the state) in float32. The names `torch` and `np` of a scheduler's
module are replaced so that its float32 becomes float64: the same code then has to agree to rounding. One test runs
diffusers as it is, to the error of its float32 tables.
"""

import importlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from gaussian_mixture import levels, network, prediction

from ddpm_deploy.schedule import NoiseSchedule
from ddpm_deploy.solvers import make_plan

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # numpy's, about diffusers

SHAPE = (3, 2, 2, 2)
STEPS = (4, 10, 25, 50)
KINDS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample", "flow": "flow_prediction"}
BETAS = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
LINEAR_ABAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


@dataclass(frozen=True)
class Case:
    """One of our solvers and the scheduler that must agree with it."""

    solver: str
    scheduler: str
    options: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    step: dict[str, Any] = field(default_factory=dict)
    kinds: tuple[str, ...] = ("eps", "v", "x0")
    ends_clean: bool = True  # whether diffusers' last step goes to the clean image, and is finite


def dpm(**config):
    return {"lower_order_final": False, "final_sigmas_type": "zero", **config}


CASES = {
    "ddpm-small": Case("ddpm", "DDPM", {"variance": "small"}, {"variance_type": "fixed_small"}),
    "ddpm-large": Case("ddpm", "DDPM", {"variance": "large"}, {"variance_type": "fixed_large"}),
    **{f"ddim-eta{eta:g}": Case("ddim", "DDIM", {"eta": eta}, {}, {"eta": eta}) for eta in (0.0, 0.5, 1.0)},
    "ddim-trailing": Case("ddim", "DDIM", {"eta": 0.5}, {"timestep_spacing": "trailing"}, {"eta": 0.5}),
    "ddim-offset": Case("ddim", "DDIM", {}, {"steps_offset": 1}),
    "euler": Case("euler", "EulerDiscrete", {}, {"timestep_spacing": "trailing"}),
    "euler-karras": Case("euler", "EulerDiscrete", {}, {"use_karras_sigmas": True}),
    "euler-exponential": Case("euler", "EulerDiscrete", {}, {"use_exponential_sigmas": True}),
    "euler_a": Case("euler_a", "EulerAncestralDiscrete", {}, {"timestep_spacing": "trailing"}, kinds=("eps", "v")),
    "heun": Case("heun", "HeunDiscrete", {}, {"timestep_spacing": "trailing"}),
    "heun-karras": Case("heun", "HeunDiscrete", {}, {"use_karras_sigmas": True}),
    "dpmpp_1": Case("dpmpp_1", "DPMSolverMultistep", {}, dpm(solver_order=1)),
    "dpmpp_1-sde": Case(
        "dpmpp_1", "DPMSolverMultistep", {"sde": True}, dpm(solver_order=1, algorithm_type="sde-dpmsolver++")
    ),
    "dpmpp_2m": Case("dpmpp_2m", "DPMSolverMultistep", {}, dpm()),
    "dpmpp_2m-trailing": Case("dpmpp_2m", "DPMSolverMultistep", {}, dpm(timestep_spacing="trailing")),
    "dpmpp_2m-heun": Case("dpmpp_2m", "DPMSolverMultistep", {"kind": "heun"}, dpm(solver_type="heun")),
    "dpmpp_2m_sde": Case("dpmpp_2m_sde", "DPMSolverMultistep", {}, dpm(algorithm_type="sde-dpmsolver++")),
    "dpmpp_3m": Case("dpmpp_3m", "DPMSolverMultistep", {}, dpm(solver_order=3)),
    **{
        f"deis-{order}": Case(
            "deis",
            "DEISMultistep",
            {"order": order},
            {"solver_order": order, "lower_order_final": False},
            ends_clean=False,
        )
        for order in (1, 2, 3)
    },
    **{
        f"unipc-{order}-{variant}": Case(
            "unipc",
            "UniPCMultistep",
            {"order": order, "variant": variant},
            {"solver_order": order, "solver_type": variant},
            ends_clean=variant == "bh2",  # bh1 multiplies an infinite step by zero
        )
        for order in (1, 2, 3)
        for variant in ("bh1", "bh2")
    },
    "lcm": Case("lcm", "LCM"),
}


class Widened:
    """A module whose float32 is its float64."""

    def __init__(self, module):
        self._module = module

    def __getattr__(self, name):
        return getattr(self._module, "float64" if name == "float32" else name)


@pytest.fixture
def build(monkeypatch):
    """Make a scheduler, in float64 unless told, that draws the given noise, one array a call."""

    def make(name, config, noise, widened=True):
        cls = getattr(diffusers, f"{name}Scheduler")
        module = importlib.import_module(cls.__module__)
        if widened:
            monkeypatch.setattr(module, "torch", Widened(torch))
            monkeypatch.setattr(module, "np", Widened(np))
            torch.set_default_dtype(torch.float64)
        if hasattr(module, "randn_tensor"):
            draws = iter(noise)
            dtype = torch.float64 if widened else torch.float32
            monkeypatch.setattr(module, "randn_tensor", lambda *args, **kw: torch.tensor(next(draws), dtype=dtype))
        if name in ("DDPM", "DDIM", "LCM", "HeunDiscrete"):
            config = {"clip_sample": False, **config}
        return cls(**config)

    yield make
    torch.set_default_dtype(torch.float32)


def diffusers_states(scheduler, denoise, x_T, **step):
    """The inputs of every network call, in variance-preserving scale, and the sample."""
    exploding = type(scheduler).__name__.startswith(("Euler", "Heun"))
    x = torch.from_numpy(x_T) * (torch.sqrt(scheduler.sigmas[0] ** 2 + 1) if exploding else 1)
    states = []
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        states.append(seen.numpy())
        x = scheduler.step(torch.from_numpy(denoise(states[-1], t)), t, x, **step).prev_sample
    return [*states, x.numpy()]


def our_states(plan, denoise, x_T, noise):
    draw = None if plan.is_deterministic else noise.__getitem__
    return [x_T, *(frame.x for frame in plan.frames(denoise, x_T, draw))]


def distinct(timesteps):
    """Falling timesteps without the repetitions of Heun's list."""
    return np.unique(np.asarray(timesteps, dtype=np.float64))[::-1]


def compare(build, case, steps, kind="eps", clip=None, size=1.0, config=None, step=None):
    """Largest difference over all states, and the share of our clean images' pixels that lie on the clip bounds."""
    rng = np.random.default_rng(steps)
    x_T, noise = 1.5 * rng.standard_normal(SHAPE), rng.standard_normal((steps, *SHAPE))
    scheduler = build(case.scheduler, {**BETAS, **case.config, "prediction_type": KINDS[kind], **(config or {})}, noise)
    scheduler.set_timesteps(steps)
    denoise = network(levels(LINEAR_ABAR), kind, size)
    theirs = diffusers_states(scheduler, denoise, x_T, **case.step, **(step or {}))
    plan = make_plan(
        case.solver,
        NoiseSchedule.linear(),
        timesteps=distinct(scheduler.timesteps),
        prediction=kind,
        clip=clip,
        **case.options,
    )
    frames = list(plan.frames(denoise, x_T, noise.__getitem__))
    ours = [x_T, *(frame.x for frame in frames)]
    if not case.ends_clean:
        ours, theirs = ours[:-1], theirs[:-1]
    assert len(ours) == len(theirs)
    clipped = np.mean([np.abs(frame.x0) == 1 for frame in frames])
    return max(np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True)), clipped


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_state_agrees_with_diffusers(build, case, steps):
    error, _ = compare(build, case, steps)
    assert error < 1e-10


@pytest.mark.parametrize(
    ("case", "kind"), [pytest.param(c, k, id=f"{n}-{k}") for n, c in CASES.items() for k in c.kinds if k != "eps"]
)
def test_other_prediction_types_agree_with_diffusers(build, case, kind):
    error, _ = compare(build, case, 10, kind)
    assert error < 1e-10


CLIPPING = {
    "ddpm-small": {"clip_sample": True},
    "ddpm-large": {"clip_sample": True},
    "ddim-eta0": {"clip_sample": True},
    "ddim-eta1": {"clip_sample": True},
    "heun": {"clip_sample": True},
    "lcm": {"clip_sample": True},
    # with a largest value of 1 dynamic thresholding is a clip to [-1, 1]
    **{
        name: {"thresholding": True, "sample_max_value": 1.0}
        for name in ("dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "deis-3", "unipc-2-bh2", "unipc-3-bh1")
    },
}


@pytest.mark.parametrize("kind", ["eps", "v"])
@pytest.mark.parametrize("name", CLIPPING)
def test_clipping_agrees_with_diffusers(build, name, kind):
    step = {"use_clipped_model_output": True} if name.startswith("ddim") else {}
    error, clipped = compare(build, CASES[name], 10, kind, (-1.0, 1.0), 2.0, CLIPPING[name], step)
    assert error < 1e-10
    assert clipped > 0.05, "the test must clip something"


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_float32_diffusers_as_it_is_agrees_to_its_table_error(build, case):
    rng = np.random.default_rng(1)
    x_T, noise = rng.standard_normal(SHAPE), rng.standard_normal((25, *SHAPE))
    scheduler = build(case.scheduler, {**BETAS, **case.config, "prediction_type": "v_prediction"}, noise, widened=False)
    scheduler.set_timesteps(25)
    denoise = network(levels(LINEAR_ABAR), "v")
    theirs = diffusers_states(scheduler, denoise, x_T, **case.step)
    t = distinct(scheduler.timesteps)
    plan = make_plan(case.solver, NoiseSchedule.linear(), timesteps=t, prediction="v", **case.options)
    last = None if case.ends_clean else -1
    for a, b in zip(our_states(plan, denoise, x_T, noise)[:last], theirs[:last], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_learned_variance_agrees_with_diffusers(build):
    rng = np.random.default_rng(3)
    x_T, noise = rng.standard_normal(SHAPE), rng.standard_normal((10, *SHAPE))
    mean = network(levels(LINEAR_ABAR))

    def denoise(x, t):
        return np.concatenate([mean(x, t), np.tanh(3 * x)], axis=1)

    scheduler = build("DDPM", {**BETAS, "variance_type": "learned_range"}, noise)
    scheduler.set_timesteps(10)
    theirs = diffusers_states(scheduler, denoise, x_T)
    plan = make_plan("ddpm", NoiseSchedule.linear(), timesteps=scheduler.timesteps.numpy(), variance="learned")
    for a, b in zip(our_states(plan, denoise, x_T, noise), theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)


def _flow(build, scheduler_name, config, steps, solver, **options):
    """Both sides on the scheduler's own sigmas, with alpha = 1 - sigma."""
    rng = np.random.default_rng(steps)
    x_T = rng.standard_normal(SHAPE)
    scheduler = build(scheduler_name, config, [])
    scheduler.set_timesteps(steps)
    sigma = scheduler.sigmas[:-1].numpy()
    table = dict(zip(scheduler.timesteps.tolist(), sigma, strict=True))

    def theirs(x, t):
        return prediction(x, 1 - table[float(t)], table[float(t)], "flow")

    def ours(x, t):
        s = sigma[::-1][int(t[0])]
        return prediction(x, 1 - s, s, "flow")

    schedule = NoiseSchedule.from_alpha_sigma(1 - sigma[::-1], sigma[::-1])
    plan = make_plan(solver, schedule, timesteps=np.arange(steps)[::-1], prediction="flow", **options)
    return our_states(plan, ours, x_T, None), diffusers_states(scheduler, theirs, x_T)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", STEPS)
def test_flow_matching_euler_agrees_with_diffusers(build, steps, shift):
    ours, theirs = _flow(build, "FlowMatchEulerDiscrete", {"shift": shift}, steps, "euler")
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(
    ("scheduler", "config", "solver", "options"),
    [
        ("DPMSolverMultistep", {"lower_order_final": False}, "dpmpp_2m", {}),
        ("DPMSolverMultistep", {"lower_order_final": False, "solver_order": 3}, "dpmpp_3m", {}),
        ("UniPCMultistep", {"solver_order": 2}, "unipc", {"order": 2}),
        ("UniPCMultistep", {"solver_order": 3}, "unipc", {"order": 3}),
    ],
)
def test_multistep_solvers_on_a_flow_path_agree_with_diffusers(build, scheduler, config, solver, options, steps):
    config = {**config, "use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
    ours, theirs = _flow(build, scheduler, config, steps, solver, **options)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)
