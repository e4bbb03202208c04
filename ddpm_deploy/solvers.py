"""Solvers: each compiles (schedule, timesteps) to a `Plan`. All coefficients are computed here, once, in float64.

In every solver the last row jumps to the clean image (alpha 1, sigma 0) by a first-order step, and coefficients come
from consecutive entries of the list of timesteps, never from a stride. A solver is any function
`(schedule, timesteps, **options) -> Plan` for a network that predicts the clean image; `make_plan` adds the rest.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ddpm_deploy.grid import Factors, Grid
from ddpm_deploy.multistep import adams_weights, data_weights, noise_weights, unic_weights, unip_weights
from ddpm_deploy.plan import Plan, PlanBuilder, Prediction
from ddpm_deploy.schedule import Float, NoiseSchedule, posterior_coefficients, transition
from ddpm_deploy.spacing import check_timesteps, make_timesteps

Solver = Callable[..., Plan]


def ddpm(schedule: NoiseSchedule, timesteps: ArrayLike, *, variance: str = "small") -> Plan:
    """Ancestral sampling (Ho et al. 2020, algorithm 2).

    variance: "small" is the posterior's beta~, "large" is beta (both section 3.2), "learned" lets the network
    interpolate between the two (Nichol & Dhariwal 2021, eq. 15).
    """
    if variance not in VARIANCES:
        raise ValueError(f"variance: got {variance!r}, expected one of {', '.join(VARIANCES)}")
    grid = Grid.of(schedule, timesteps)
    plan = PlanBuilder("ddpm", ["x"])
    logs = []
    for i, t in enumerate(grid.t):
        span = grid.alpha[i + 1], grid.sigma[i + 1], grid.alpha[i], grid.sigma[i]
        from_x, from_x0, small = posterior_coefficients(*span)
        _, large = transition(*span)
        last = i + 1 == len(grid)
        logs.append((np.log(large if last else small), np.log(large)))
        factor = {"small": np.sqrt(small), "large": np.sqrt(large), "learned": 1.0}[variance]
        plan.row(t, x={"x": from_x, "d": from_x0, "z": 0.0 if last else factor})
    return plan.build(log_variance=logs if variance == "learned" else None)


def ddim(schedule: NoiseSchedule, timesteps: ArrayLike, *, eta: float = 0.0) -> Plan:
    """Compile DDIM to a plan (Song et al. 2020, eq. 12).

    timesteps: (S,) strictly decreasing, in [0, T-1]. eta: 0 is deterministic, 1 is ancestral DDPM.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta: got {eta!r}, expected a number in [0, 1]; 0 is deterministic, 1 is DDPM")
    grid = Grid.of(schedule, timesteps)
    plan = PlanBuilder("ddim", ["x"])
    for i, t in enumerate(grid.t):
        alpha, sigma, sigma_next = grid.alpha[i], grid.sigma[i], grid.sigma[i + 1]
        _, _, variance = posterior_coefficients(grid.alpha[i + 1], sigma_next, alpha, sigma)
        fresh = eta**2 * variance
        ratio = np.sqrt(sigma_next**2 - fresh) / sigma
        plan.row(t, x={"x": ratio, "d": grid.alpha[i + 1] - ratio * alpha, "z": np.sqrt(fresh)})
    return plan.build()


def euler(schedule: NoiseSchedule, timesteps: ArrayLike) -> Plan:
    """Euler's method on the probability-flow ODE in sigma/alpha (Karras et al. 2022); the same as DDIM, eta 0."""
    return _named("euler", ddim(schedule, timesteps))


def euler_a(schedule: NoiseSchedule, timesteps: ArrayLike) -> Plan:
    """Euler ancestral (k-diffusion); the same as DDPM with the small variance."""
    return _named("euler_a", ddpm(schedule, timesteps))


def heun(schedule: NoiseSchedule, timesteps: ArrayLike) -> Plan:
    """Heun's second-order method in sigma/alpha (Karras et al. 2022, algorithm 1, no churn); NFE = 2N - 1."""
    grid = Grid.of(schedule, timesteps)
    plan = PlanBuilder("heun", ["x", "anchor", "slope"])
    for i, t in enumerate(grid.t):
        if i + 1 == len(grid) or grid.alpha[i] == 0:
            plan.row(t, x=grid.ddim(i))
            continue
        scale = grid.alpha[i + 1] / grid.alpha[i]
        half = (grid.sigma[i + 1] - scale * grid.sigma[i]) / 2
        plan.row(t, x=grid.ddim(i), anchor={"x": 1}, slope=grid.eps(i))
        plan.row(grid.t[i + 1], x=_sum((1, {"anchor": scale, "slope": half}), (half, grid.eps(i + 1))))
    return plan.build()


def dpmpp_1(schedule: NoiseSchedule, timesteps: ArrayLike, *, sde: bool = False) -> Plan:
    """DPM-Solver++(1) (Lu et al. 2022b, eq. 4.1 of order 1), or its SDE form; these equal DDIM and DDPM (small)."""
    grid = Grid.of(schedule, timesteps)
    plan = PlanBuilder("dpmpp_1", ["x"])
    for i, t in enumerate(grid.t):
        plan.row(t, x=_exponential_step(grid, i, {"d": 1.0}, sde))
    return plan.build()


def dpmpp_2m(schedule: NoiseSchedule, timesteps: ArrayLike, *, kind: str = "midpoint") -> Plan:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2).

    kind: "midpoint" as in the paper; "heun" weighs the difference by its exact integral.
    """
    if kind not in ("midpoint", "heun"):
        raise ValueError(f"kind: got {kind!r}, expected midpoint or heun")
    grid = Grid.of(schedule, timesteps)
    plan = PlanBuilder("dpmpp_2m", ["x", "d1"])
    for i, t in enumerate(grid.t):
        if grid.order(i, 2) == 1:
            step = grid.ddim(i)
        elif kind == "midpoint":
            step = _exponential_step(grid, i, _extrapolated(grid, i))
        else:
            step = _weighted(grid.sigma[i + 1] / grid.sigma[i], data_weights(grid, i, 2), ["d", "d1"])
        plan.row(t, x=step, d1={"d": 1})
    return plan.build()


def dpmpp_2m_sde(schedule: NoiseSchedule, timesteps: ArrayLike) -> Plan:
    """SDE-DPM-Solver++(2M), midpoint (Lu et al. 2022b, appendix B)."""
    grid = Grid.of(schedule, timesteps)
    plan = PlanBuilder("dpmpp_2m_sde", ["x", "d1"])
    for i, t in enumerate(grid.t):
        data = {"d": 1.0} if grid.order(i, 2) == 1 else _extrapolated(grid, i)
        plan.row(t, x=_exponential_step(grid, i, data, sde=True), d1={"d": 1})
    return plan.build()


def dpmpp_3m(schedule: NoiseSchedule, timesteps: ArrayLike, *, exact: bool = False) -> Plan:
    """DPM-Solver++(3M), the multistep form of the authors' code.

    exact: the published code gives the second difference half its weight, which leaves order 2; True restores 3.
    """
    grid = Grid.of(schedule, timesteps)
    plan = PlanBuilder("dpmpp_3m", ["x", "d1", "d2"])
    for i, t in enumerate(grid.t):
        order = grid.order(i, 3)
        if order == 1:
            step = grid.ddim(i)
        elif order == 2:
            step = _exponential_step(grid, i, _extrapolated(grid, i))
        else:
            weights = data_weights(grid, i, order, second_difference=1.0 if exact else 0.5)
            step = _weighted(grid.sigma[i + 1] / grid.sigma[i], weights, ["d", "d1", "d2"])
        plan.row(t, x=step, d1={"d": 1}, d2={"d1": 1})
    return plan.build()


def ipndm(schedule: NoiseSchedule, timesteps: ArrayLike, *, order: int = 4, variable: bool = False) -> Plan:
    """Adams-Bashforth in sigma/alpha on the predicted noise (Zhang & Chen 2022, iPNDM).

    order: 1 to 4. variable: False uses the published weights of even steps; True fits them to the actual steps.
    """
    _check_order(order, 4)
    return _noise_multistep("ipndm", schedule, timesteps, order, partial(adams_weights, variable=variable))


def deis(schedule: NoiseSchedule, timesteps: ArrayLike, *, order: int = 3) -> Plan:
    """DEIS with polynomials in lambda (Zhang & Chen 2022, tAB-DEIS in log rho). order: 1 to 3."""
    _check_order(order, 3)
    return _noise_multistep("deis", schedule, timesteps, order, noise_weights)


def unipc(schedule: NoiseSchedule, timesteps: ArrayLike, *, order: int = 3, variant: str = "bh2") -> Plan:
    """UniPC (Zhao et al. 2023, algorithms 5-8, data prediction): the corrector needs no evaluation of its own.

    order: 1 to 3. variant: "bh1" or "bh2", the paper's B(h).
    """
    _check_order(order, 3)
    if variant not in ("bh1", "bh2"):
        raise ValueError(f"variant: got {variant!r}, expected bh1 or bh2")
    grid = Grid.of(schedule, timesteps)
    history = ["d", *(f"d{k}" for k in range(1, order + 1))]
    plan = PlanBuilder("unipc", ["x", "anchor", *history[1:]])
    reached = 1
    for i, t in enumerate(grid.t):
        base: Factors = {"x": 1.0}
        if i > 0 and np.isfinite(grid.lam[i - 1]):
            base = _weighted(grid.sigma[i] / grid.sigma[i - 1], unic_weights(grid, i, reached, variant), history)
            base["anchor"] = base.pop("x")
        reached = min(grid.order(i, order), len(grid) - i)
        if np.isfinite(grid.lam[i]):
            past = dict(zip(history, unip_weights(grid, i, reached, variant), strict=False))
            step = _sum((grid.sigma[i + 1] / grid.sigma[i], base), (1, past))
        else:
            step = grid.ddim(i)
        shifted = {name: {older: 1.0} for older, name in pairwise(history)}
        plan.row(t, x=step, anchor=base, **shifted)
    return plan.build()


def lcm(
    schedule: NoiseSchedule, timesteps: ArrayLike, *, sigma_data: float = 0.5, timestep_scaling: float = 10.0
) -> Plan:
    """Latent-consistency sampling (Luo et al. 2023, algorithm 3), with its boundary scaling in t."""
    grid = Grid.of(schedule, timesteps)
    plan = PlanBuilder("lcm", ["x"])
    for i, t in enumerate(grid.t):
        scaled = t * timestep_scaling
        skip = sigma_data**2 / (scaled**2 + sigma_data**2)
        out = scaled / np.sqrt(scaled**2 + sigma_data**2)
        alpha = grid.alpha[i + 1]
        plan.row(t, x={"x": alpha * skip, "d": alpha * out, "z": grid.sigma[i + 1]})
    return plan.build()


def consistency(schedule: NoiseSchedule, timesteps: ArrayLike) -> Plan:
    """Multistep consistency sampling (Song et al. 2023, algorithm 1): jump to the image, add noise again."""
    grid = Grid.of(schedule, timesteps)
    plan = PlanBuilder("consistency", ["x"])
    for i, t in enumerate(grid.t):
        plan.row(t, x={"d": grid.alpha[i + 1], "z": grid.sigma[i + 1]})
    return plan.build()


VARIANCES = ("small", "large", "learned")

SOLVERS: dict[str, Solver] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "euler": euler,
    "euler_a": euler_a,
    "heun": heun,
    "dpmpp_1": dpmpp_1,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_3m": dpmpp_3m,
    "ipndm": ipndm,
    "deis": deis,
    "unipc": unipc,
    "lcm": lcm,
    "consistency": consistency,
}


def make_plan(
    solver: str | Solver,
    schedule: NoiseSchedule,
    steps: int | None = None,
    spacing: str = "trailing",
    prediction: Prediction = "eps",
    clip: tuple[float, float] | None = None,
    timesteps: ArrayLike | None = None,
    **options: Any,
) -> Plan:
    """Compile a solver for a network.

    solver: a key of `SOLVERS`, or any function (schedule, timesteps, **options) -> Plan. steps: 1 to T; None is T.
    spacing: a key of `spacing.SPACINGS`. timesteps: (S,) strictly falling in [0, T-1], instead of steps and spacing.
    prediction: see `Plan.for_model`. clip: bounds of the predicted clean image. options: the solver's own.
    """
    compile_plan = _find(solver)
    _check_options(solver, compile_plan, options)
    if timesteps is None:
        timesteps = make_timesteps(schedule, schedule.T if steps is None else steps, spacing)
    elif steps is not None and steps != np.size(timesteps):
        raise ValueError(f"steps: got {steps} beside {np.size(timesteps)} timesteps; give one of the two")
    plan = compile_plan(schedule, check_timesteps(schedule, timesteps), **options)
    return plan.for_model(schedule, prediction, clip)


def consistency_prediction(sigma_data: float = 0.5, sigma_min: float = 0.002) -> Prediction:
    """The prediction type of consistency models, `c_skip x + c_out F` (Song et al. 2023, appendix C)."""

    def coefficients(alpha: Float, sigma: Float) -> tuple[Float, Float]:
        noise = sigma / alpha
        c_skip = sigma_data**2 / ((noise - sigma_min) ** 2 + sigma_data**2)
        c_out = sigma_data * (noise - sigma_min) / np.sqrt(noise**2 + sigma_data**2)
        return c_skip / alpha, c_out

    return coefficients


def _exponential_step(grid: Grid, i: int, data: Mapping[str, float], sde: bool = False) -> Factors:
    """Exact integration of a constant clean image `data` over one step, as ODE or as SDE (Lu et al. 2022b)."""
    if not sde:
        step = grid.ddim(i)
        return _sum((1, {"x": step["x"]}), (step["d"], data))
    from_x, from_x0, variance = posterior_coefficients(
        grid.alpha[i + 1], grid.sigma[i + 1], grid.alpha[i], grid.sigma[i]
    )
    return _sum((1, {"x": from_x, "z": np.sqrt(variance)}), (from_x0, data))


def _extrapolated(grid: Grid, i: int) -> Factors:
    """The clean image half a step ahead, from the last two (Lu et al. 2022b, algorithm 2)."""
    r = (grid.lam[i] - grid.lam[i - 1]) / (grid.lam[i + 1] - grid.lam[i])
    return {"d": 1 + 0.5 / r, "d1": -0.5 / r}


def _noise_multistep(
    name: str, schedule: NoiseSchedule, timesteps: ArrayLike, order: int, weights: Callable[..., Float]
) -> Plan:
    grid = Grid.of(schedule, timesteps)
    older = [f"e{k}" for k in range(1, order)]
    plan = PlanBuilder(name, ["x", *older])
    for i, t in enumerate(grid.t):
        now = grid.order(i, order)
        if now == 1:
            step = grid.ddim(i)
        else:
            newest, *rest = weights(grid, i, now)
            past = dict(zip(older, rest, strict=False))
            step = _sum((1, {"x": grid.alpha[i + 1] / grid.alpha[i]}), (newest, grid.eps(i)), (1, past))
        sources = [grid.eps(i), *({name: 1.0} for name in older)]
        plan.row(t, x=step, **dict(zip(older, sources, strict=False)))
    return plan.build()


def _weighted(from_x: float, weights: Sequence[float] | Float, names: Sequence[str]) -> Factors:
    return {"x": float(from_x)} | {name: float(w) for name, w in zip(names, weights, strict=False)}


def _sum(*parts: tuple[float, Mapping[str, float]]) -> Factors:
    """A sum of scaled linear combinations."""
    total: Factors = {}
    for scale, factors in parts:
        for name, factor in factors.items():
            total[name] = total.get(name, 0.0) + float(scale * factor)
    return total


def _named(name: str, plan: Plan) -> Plan:
    return Plan(name, plan.state, plan.t, plan.predict, plan.clip, plan.update, plan.log_variance)


def _find(solver: str | Solver) -> Solver:
    if callable(solver):
        return solver
    if solver not in SOLVERS:
        raise ValueError(f"solver: got {solver!r}, expected one of {', '.join(SOLVERS)}")
    return SOLVERS[solver]


def _check_options(solver: str | Solver, compile_plan: Solver, options: Mapping[str, Any]) -> None:
    parameters = list(inspect.signature(compile_plan).parameters.values())
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    known = {p.name: p.default for p in parameters[2:] if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    for name, value in options.items():
        if name not in known:
            choices = f"expected {', '.join(known)}" if known else "it has none"
            raise ValueError(f"{name}: not an option of solver {solver!r}; {choices}")
        if not _is_like(value, known[name]):
            raise ValueError(f"{name}: got {value!r}, expected something like {known[name]!r}")


def _is_like(value: Any, default: Any) -> bool:
    """Whether an option has the kind of its default, so that a typing error does not surface inside a formula."""
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, type(default))
    if isinstance(default, int | float):
        return isinstance(value, int | float | np.number)
    return not isinstance(default, str) or isinstance(value, str)


def _check_order(order: int, most: int) -> None:
    if isinstance(order, bool) or not isinstance(order, int) or not 1 <= order <= most:
        raise ValueError(f"order: got {order!r}, expected a whole number from 1 to {most}")
