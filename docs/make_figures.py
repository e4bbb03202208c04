"""Draw the pictures of docs/theory.md into docs/img/: `python docs/make_figures.py [NAME ...]`.

Needs matplotlib and scikit-learn, no network and no trained model: every denoiser here is in closed form.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from closed_form import (
    digits,
    mixture_denoiser,
    normal_density,
    rms,
    toy_denoiser,
    toy_density,
    toy_samples,
)
from figure_style import BLUE, FAINT, GREEN, INK, ORANGE, PEACH, PURPLE, RED, SKY, STYLE, WIDTH, save, show
from matplotlib.figure import Figure

from ddpm_deploy.schedule import NoiseSchedule
from ddpm_deploy.solvers import make_plan
from ddpm_deploy.spacing import SPACINGS, make_timesteps

OUT = Path(__file__).parent / "img"
SCHEDULES = {
    "linear": (NoiseSchedule.linear, BLUE),
    "scaled linear": (NoiseSchedule.scaled_linear, ORANGE),
    "cosine": (NoiseSchedule.cosine, GREEN),
    "sigmoid": (NoiseSchedule.sigmoid, RED),
    "flow": (NoiseSchedule.flow_matching, PURPLE),
}


def dice() -> Figure:
    """The sum of n dice, standardised, beside the Gaussian."""
    figure, panels = plt.subplots(1, 4, figsize=(WIDTH, 2.1), sharey=True)
    grid = np.linspace(-3.6, 3.6, 300)
    pmf, die = np.ones(1), np.full(6, 1 / 6)
    for n in range(1, 11):
        pmf = np.convolve(pmf, die)
        if n not in (1, 2, 4, 10):
            continue
        axes = panels[(1, 2, 4, 10).index(n)]
        deviation = np.sqrt(n * 35 / 12)
        z = (np.arange(n, 6 * n + 1) - 3.5 * n) / deviation
        axes.bar(z, pmf * deviation, 0.86 / deviation, color=SKY)
        axes.plot(grid, normal_density(grid), color=RED)
        axes.set(title="1 die" if n == 1 else f"{n} dice", xlim=(-3.6, 3.6), xticks=(-2, 0, 2), yticks=[])
        axes.spines["left"].set_visible(False)
    figure.supxlabel("(sum − mean) / standard deviation", fontsize=9.5)
    return figure


def forward() -> Figure:
    """One real digit on its way to noise, under two schedules."""
    times = (None, 50, 100, 200, 300, 400, 500, 700, 999)
    picture, eps = digits()[[4]], np.random.default_rng(1).standard_normal((1, 64))
    figure, panels = plt.subplots(2, len(times), figsize=(WIDTH, 2.35))
    for row, name in zip(panels, ("linear", "cosine"), strict=True):
        schedule = SCHEDULES[name][0]()
        for axes, t in zip(row, times, strict=True):
            show(axes, picture if t is None else schedule.add_noise(picture, eps, t))
        row[0].set_ylabel(name)
    for axes, t in zip(panels[0], times, strict=True):
        axes.set_title("clean $x_0$" if t is None else f"$t$ = {t}")
    return figure


def chain() -> Figure:
    """The step-by-step chain against the closed form."""
    schedule, rng = NoiseSchedule.linear(), np.random.default_rng(0)
    x = np.full((4000, 1), 1.5)
    paths = [x[:, 0]]
    for t in range(schedule.T):
        x = schedule.forward_step(x, rng.standard_normal(x.shape), t)
        paths.append(x[:, 0])
    table, time = np.array(paths), np.arange(schedule.T + 1) - 1
    mean, deviation = 1.5 * np.append(1, schedule.alpha), np.append(0, schedule.sigma)
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.9), width_ratios=(1.6, 1))
    left.fill_between(time, mean - 2 * deviation, mean + 2 * deviation, color=BLUE, alpha=0.13, lw=0)
    left.plot(time, table[:, :7], lw=0.6, color=FAINT)
    left.plot(time, mean, color=BLUE)
    left.set(title="7 chains, and the closed form's mean ± 2 deviations", xlabel="$t$", ylabel="$x_t$", xlim=(-1, 999))
    some = slice(0, None, 71)
    right.plot(time, mean, color=BLUE)
    right.plot(time, deviation**2, color=RED)
    right.plot(time[some], table.mean(1)[some], "o", ms=4.5, mfc="white", color=BLUE)
    right.plot(time[some], table.var(1)[some], "o", ms=4.5, mfc="white", color=RED)
    right.text(560, 0.85, "variance", color=RED)
    right.text(330, 1.0, "mean", color=BLUE)
    right.set(title="lines: closed form; circles: 4000 chains", xlabel="$t$", ylim=(-0.05, 1.6))
    return figure


def histograms() -> Figure:
    """The pixels of all digits turn into a standard Gaussian."""
    schedule, pixels = NoiseSchedule.linear(), digits()
    eps = np.random.default_rng(0).standard_normal(pixels.shape)
    times, grid = (None, 50, 150, 300, 999), np.linspace(-3.4, 3.4, 200)
    figure, panels = plt.subplots(1, len(times), figsize=(WIDTH, 2.1), sharey=True)
    for axes, t in zip(panels, times, strict=True):
        x = pixels if t is None else schedule.add_noise(pixels, eps, t)
        axes.hist(x.ravel(), bins=np.linspace(-3.4, 3.4, 52), density=True, color=SKY)
        axes.plot(grid, normal_density(grid), color=RED)
        axes.set(title="clean $x_0$" if t is None else f"$t$ = {t}", ylim=(0, 1.1), xticks=(-2, 0, 2), yticks=[])
        axes.spines["left"].set_visible(False)
    figure.supxlabel("pixel value; the line is $N(0, 1)$", fontsize=9.5)
    return figure


def schedules() -> Figure:
    """How fast each schedule hides the picture."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.9))
    for name, (make, colour) in SCHEDULES.items():
        schedule = make()
        left.plot(schedule.alpha, color=colour, label=name)
        right.plot(schedule.lam, color=colour)
    left.set(title=r"image scale $\alpha$", xlabel="$t$", xlim=(0, 999), ylim=(0, 1.02))
    right.set(title=r"half log signal-to-noise $\lambda = \log(\alpha/\sigma)$", xlabel="$t$", xlim=(0, 999))
    right.set_ylim(-6, 6)
    right.axhline(0, color=FAINT, lw=1, ls=":")
    right.text(985, 0.2, "as much image as noise", ha="right", color=FAINT, fontsize=8.5)
    figure.legend(loc="outside lower center", ncols=5)
    return figure


def posterior() -> Figure:
    """Bayes' rule for one backward step: two bells and their product."""
    schedule, t, x0, x_t = NoiseSchedule.linear(20, 0.02, 0.4), 6, 1.6, -0.9
    ratio, variance = schedule.alpha[t] / schedule.alpha[t - 1], schedule.betas[t]
    mean, narrow = schedule.posterior(np.array([x0]), np.array([x_t]), t)
    bells = (
        (schedule.alpha[t - 1] * x0, schedule.sigma[t - 1], BLUE, r"$q(x_{t-1}|x_0)$: where the image would be"),
        (x_t / ratio, np.sqrt(variance) / ratio, ORANGE, r"$q(x_t|x_{t-1})$: where $x_t$ may have come from"),
        (mean[0], np.sqrt(narrow), GREEN, r"$q(x_{t-1}|x_t,x_0)$: their product"),
    )
    grid = np.linspace(-3.2, 3.4, 500)
    figure, axes = plt.subplots(figsize=(WIDTH, 2.6))
    for centre, width, colour, label in bells:
        bell = normal_density(grid, centre, width)
        axes.plot(grid, bell, color=colour, label=label)
        axes.fill_between(grid, bell, color=colour, alpha=0.15, lw=0)
    axes.set(xlabel="$x_{t-1}$", yticks=[], xlim=(-3.2, 3.4), ylim=(0, None))
    axes.spines["left"].set_visible(False)
    axes.legend(loc="upper right")
    return figure


def weights() -> Figure:
    """How much each loss cares for an error of the noise, by t."""
    schedule = NoiseSchedule.linear()
    snr = np.exp(2 * schedule.lam)
    curves = {
        "variational bound": (0.5 * (snr[:-1] / snr[1:] - 1), BLUE, "-"),
        r"$\epsilon$ loss, $L_{\mathrm{simple}}$": (np.ones(schedule.T - 1), GREEN, "-"),
        "min-SNR, 5": (np.minimum(snr, 5)[1:] / snr[1:], ORANGE, "--"),
        "$v$ loss": (1 / schedule.alpha[1:] ** 2, PURPLE, "-."),
        "$x_0$ loss": (1 / snr[1:], RED, ":"),
    }
    figure, axes = plt.subplots(figsize=(WIDTH, 2.9))
    for label, (weight, colour, style) in curves.items():
        axes.plot(np.arange(1, schedule.T), weight, color=colour, ls=style, label=label)
    axes.set(xlabel="$t$", yscale="log", xscale="log", xlim=(1, 999), ylim=(1e-4, 1e5))
    axes.set(yticks=10.0 ** np.arange(-4, 6, 2), title=r"factor of $\Vert\epsilon-\epsilon_\theta\Vert^2$ in the loss")
    axes.grid(True)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def flow() -> Figure:
    """One mixture, two ways back: the ODE and the ancestral chain."""
    schedule, rng = NoiseSchedule.cosine(), np.random.default_rng(3)
    alpha, sigma = schedule.at(np.arange(999.0, -1, -9))
    t = np.append(make_timesteps(schedule, 200, "linspace"), -1)
    x = np.linspace(-3.2, 3.2, 240)
    field = toy_density(x[:, None], alpha, sigma)
    figure, panels = plt.subplots(1, 4, figsize=(WIDTH, 2.9), sharey=True, width_ratios=(4, 0.7, 4, 0.7))
    for pair, solver, title in zip(
        (panels[:2], panels[2:]), ("ddim", "ddpm"), ("DDIM: the ODE", "DDPM: fresh noise at every step"), strict=True
    ):
        plan = make_plan(solver, schedule, timesteps=t[:-1], prediction="x0")
        x_T = np.append(np.linspace(-1.9, 1.9, 10), rng.standard_normal(4000))[:, None]
        noise = rng.standard_normal((len(plan), *x_T.shape))
        states = [x_T] + [frame.x for frame in plan.frames(toy_denoiser(schedule), x_T, noise)]
        pair[0].pcolormesh(np.linspace(999, 0, len(alpha)), x, field**0.5, cmap="Blues", vmax=1.3, rasterized=True)
        pair[0].plot(t, np.array(states)[:, :10, 0], color=RED, lw=0.9)
        pair[0].set(title=title, xlim=(999, -1), xlabel="$t$")
        pair[1].hist(
            states[-1][10:, 0], np.linspace(-3.2, 3.2, 61), density=True, orientation="horizontal", color=PEACH
        )
        pair[1].plot(toy_density(x), x, color=INK, lw=1.2)
        pair[1].axis("off")
    panels[0].set(ylabel="$x_t$", ylim=(-3.2, 3.2))
    return figure


def denoising() -> Figure:
    """Noise to digits in ten evaluations of the exact denoiser of the data set."""
    schedule, pictures = NoiseSchedule.cosine(), digits()
    plan = make_plan("dpmpp_2m", schedule, steps=10, spacing="linspace", prediction="x0")
    denoise = mixture_denoiser(schedule, np.full(len(pictures), 1 / len(pictures)), pictures, 0.0)
    x = np.concatenate([np.random.default_rng(seed).standard_normal((1, 64)) for seed in (11, 45)])
    figure, panels = plt.subplots(4, len(plan), figsize=(WIDTH, 3.75))
    for column, frame in zip(panels.T, plan.frames(denoise, x), strict=True):
        for k in range(2):
            show(column[2 * k], x[k])
            show(column[2 * k + 1], frame.x0[k])
        column[0].set_title(f"$t$ = {frame.t:.0f}")
        x = frame.x
    for k, label in enumerate(("$x_t$", "$d$") * 2):
        panels[k, 0].set_ylabel(label, rotation=0, labelpad=10, va="center", fontsize=11)
    return figure


def spacings() -> Figure:
    """Ten steps, placed in six ways."""
    schedule = NoiseSchedule.linear()
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.5), sharey=True)
    for k, (name, colour) in enumerate(zip(SPACINGS, (BLUE, ORANGE, GREEN, RED, PURPLE, SKY), strict=True)):
        t = make_timesteps(schedule, 10, name)
        alpha, sigma = schedule.at(t)
        for axes, place in ((left, t), (right, np.log(alpha / sigma))):
            axes.plot(place, np.full(10, k), "o", color=colour, ms=6, mec="white", mew=0.7, clip_on=False)
    left.set(xlabel="$t$", xlim=(999, 0), yticks=range(len(SPACINGS)), yticklabels=list(SPACINGS))
    right.set(xlabel=r"$\lambda$", xlim=(schedule.lam[-1], schedule.lam[0]))
    left.invert_yaxis()
    for axes in (left, right):
        axes.grid(True, axis="y")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    figure.supxlabel("noise → image", fontsize=9.5)
    return figure


def order() -> Figure:
    """Error against steps; the slope is the order."""
    counts, reference = [10, 20, 40, 80, 160, 320], toy_samples("unipc", 20_000)
    runs = {
        "DDIM": ("ddim", BLUE, "o"),
        "DPM-Solver++(2M)": ("dpmpp_2m", ORANGE, "s"),
        "Heun": ("heun", GREEN, "^"),
        "DEIS-3": ("deis", PURPLE, "D"),
        "UniPC-3": ("unipc", RED, "v"),
    }
    figure, axes = plt.subplots(figsize=(WIDTH, 3.4))
    for name, (solver, colour, marker) in runs.items():
        errors = [rms(toy_samples(solver, N) - reference) for N in counts]
        slope = -np.polyfit(np.log(counts[-3:]), np.log(errors[-3:]), 1)[0]
        print(f"{name}: order {slope:.2f}")
        axes.loglog(counts, errors, marker=marker, color=colour, ms=6, mec="white", label=f"{name}: {slope:.2f}")
    axes.set(xlabel="steps $N$", ylabel="error of the samples", xticks=counts, xticklabels=counts)
    axes.minorticks_off()
    axes.grid(True)
    axes.legend(title="measured order, 80 to 320 steps", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    draw.__name__: draw
    for draw in (dice, forward, chain, histograms, schedules, posterior, weights, flow, denoising, spacings, order)
}


def main() -> None:
    """Draw the named pictures, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(FIGURES)}; all by default")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the PNGs (default: %(default)s)")
    args = parser.parse_args()
    unknown = set(args.names) - set(FIGURES)
    if unknown:
        parser.error(f"NAME: got {min(unknown)!r}, expected some of {', '.join(FIGURES)}")
    args.out.mkdir(parents=True, exist_ok=True)
    plt.switch_backend("Agg")
    with plt.rc_context(STYLE):
        for name in args.names or FIGURES:
            save(FIGURES[name](), args.out / f"{name}.png")
            print(args.out / f"{name}.png")


if __name__ == "__main__":
    main()
