"""A diffusion of points in the plane, trained in seconds: `python examples/points_2d.py`.

Nothing in the package assumes pictures: here a sample is a point (D,) = (2,) of a spiral. The script trains the
point network, then draws, for several solvers, where 1500 points of noise end up, and the paths that some of them take.
Needs the `train` extra (torch, accelerate, matplotlib).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import nn

from ddpm_deploy.model import PointConfig, PointNet
from ddpm_deploy.noise import initial_noise, noise_source
from ddpm_deploy.plan import Denoise, Frame
from ddpm_deploy.schedule import NoiseSchedule
from ddpm_deploy.solvers import make_plan
from ddpm_deploy.train import TrainConfig, train

T = 200
PREDICTION = "v"  # stays well scaled where x_t is almost pure noise
SOLVERS = (("ddpm", T), ("ddim", 10), ("dpmpp_2m", 10), ("unipc", 10))
BLUE, ORANGE, INK = "#0072B2", "#D55E00", "#24292f"
SHOWN = 14  # paths in a panel
REACH = 2.3  # half the width of a panel

Points = NDArray[np.float32]


def spiral(count: int, seed: int = 0) -> Points:
    """(count, 2) points of a spiral, about unit variance."""
    rng = np.random.default_rng(seed)
    turn = np.sqrt(rng.uniform(0.02, 1, count)) * 4 * np.pi
    points = 0.15 * turn[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    return (points + 0.05 * rng.standard_normal((count, 2))).astype(np.float32)


def fit(data: Points, schedule: NoiseSchedule, steps: int, out: Path) -> nn.Module:
    """Train the point network; `out` becomes a run folder, which could be exported."""
    network = PointNet(PointConfig(dim=2, hidden=128, layers=3, time_scale=1000 / schedule.T))
    config = TrainConfig(
        steps=steps,
        batch_size=512,
        lr=2e-3,
        lr_schedule="cosine",
        ema_decay=0.99,
        log_every=500,
        checkpoint_every=steps,
        sample_every=0,
        tensorboard=False,
    )
    run = train(network, data, schedule, out=out, config=config, prediction=PREDICTION, progress=True, cpu=True)
    return run.network


def as_denoiser(network: nn.Module) -> Denoise:
    """The network as the numpy function that plans call."""

    @torch.inference_mode()
    def denoise(x: NDArray[Any], t: NDArray[Any]) -> NDArray[Any]:
        return network(torch.from_numpy(x), torch.from_numpy(t)).numpy()

    return denoise


def paths(denoise: Denoise, schedule: NoiseSchedule, solver: str, steps: int, count: int, seed: int = 0) -> Points:
    """(rows + 1, count, 2) from noise to data; the same seed starts every solver at the same points."""
    spacing = "trailing" if steps == schedule.T else "logsnr"
    plan = make_plan(solver, schedule, steps, spacing, prediction=PREDICTION)
    x_T = initial_noise(seed, range(count), (2,))
    frames: list[Frame] = list(plan.frames(denoise, x_T, noise_source(seed, range(count), (2,))))
    return np.stack([x_T, *(frame.x for frame in frames)])


def draw(data: Points, denoise: Denoise, schedule: NoiseSchedule, count: int, out: Path) -> dict[str, Points]:
    """Write the picture; returns each solver's samples."""
    figure, panels = plt.subplots(2, len(SOLVERS) + 1, figsize=(11, 4.6), layout="constrained")
    show(panels[0, 0], data[:count], "data")
    show(panels[1, 0], initial_noise(0, range(count), (2,)), "noise")
    samples = {}
    for (solver, steps), column in zip(SOLVERS, panels.T[1:], strict=True):
        ways = paths(denoise, schedule, solver, min(steps, schedule.T), count)
        samples[solver] = ways[-1]
        show(column[0], ways[-1], f"{solver}, {len(ways) - 1} steps")
        show(column[1], ways[-1][:0], f"paths of {SHOWN} points")
        column[1].plot(*ways[:, :SHOWN].T.transpose(0, 2, 1), color=BLUE, lw=min(0.8, 40 / len(ways)), alpha=0.7)
        column[1].plot(*ways[-1, :SHOWN].T, ".", ms=6, color=ORANGE)
    figure.savefig(out, dpi=130)
    plt.close(figure)
    return samples


def show(axes: Axes, points: Points, title: str) -> None:
    """A cloud of points in a bare square."""
    axes.plot(*points.T, ".", ms=2, color=BLUE, alpha=0.5, mew=0)
    axes.set_title(title, fontsize=10, color=INK)
    axes.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_color("#d0d7de")


def main() -> None:
    """Train, sample, save a picture."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="training steps")
    parser.add_argument("--count", type=int, default=1500, help="points to draw")
    parser.add_argument("--out", type=Path, default=Path("points_2d.png"), help="PNG to write")
    parser.add_argument("--seed", type=int, default=0, help="of the network's first weights")
    args = parser.parse_args()
    plt.switch_backend("Agg")
    torch.manual_seed(args.seed)
    schedule, data = NoiseSchedule.linear(T, 1e-4 * 1000 / T, 0.02 * 1000 / T), spiral(10_000)
    with tempfile.TemporaryDirectory() as folder:
        network = fit(data, schedule, args.steps, Path(folder) / "run")
    draw(data, as_denoiser(network), schedule, args.count, args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
