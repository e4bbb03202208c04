"""Receding-horizon control with a diffusion policy (Chi et al. 2023): export it, load it without torch, close the loop.

The weights are random, so the robot has no skill: what is shown is the machinery, from raw observations to actions in
metres per second, and how long one chunk of actions takes. Needs the `export` extra; the loop itself only `cpu`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy import Sampler
from ddpm_deploy.bundle import Bundle, Condition, Defaults, OutputAffine
from ddpm_deploy.schedule import NoiseSchedule

HORIZON, EXECUTED = 16, 8  # actions in a chunk, and how many of them run before the next chunk
OBSERVED, OBSERVATION = 2, 4  # the last two of (x, y, goal x, goal y)
FEATURES = 32  # of `global_cond`
SECONDS = 0.1  # of one action
LOW, HIGH = np.array([-0.6, -0.2]), np.array([0.6, 0.8])  # m/s of each axis, from the demonstrations that are not there

Array = NDArray[np.float32]


class PointRobot:
    """A point in the plane that moves as it is told, but for some slip; its observations are in metres."""

    def __init__(self, goal: tuple[float, float], seed: int = 0) -> None:
        self.position, self.goal = np.zeros(2), np.array(goal)
        self.rng = np.random.default_rng(seed)
        self.seen = [self._look()] * OBSERVED

    def move(self, velocity: Array) -> None:
        """velocity: (2,) in m/s."""
        slip = 1 + 0.02 * self.rng.standard_normal(2)
        self.position = self.position + SECONDS * slip * velocity
        self.seen = [*self.seen[1:], self._look()]

    def observe(self) -> Array:
        """(OBSERVED, OBSERVATION), the newest last."""
        return np.array(self.seen, np.float32)

    def _look(self) -> NDArray[np.float64]:
        return np.concatenate([self.position, self.goal])


def export(out: Path) -> Bundle:
    """Write the policy as a bundle: the denoiser, and beside it the encoder of observations."""
    from ddpm_deploy.export import Options, export_module
    from ddpm_deploy.export.encoder import Encoder
    from ddpm_deploy.model.policy import denoiser, encoder

    network = denoiser(action_dim=2, cond_dim=FEATURES, channels=[32, 64], time_channels=32)
    statistics = {"mean": [0.0, 0.5, 0.0, 1.0], "std": [0.5, 0.5, 1.0, 1.0]}  # of each observed channel, in metres
    observer = encoder(obs_horizon=OBSERVED, obs_dim=OBSERVATION, cond_dim=FEATURES, **statistics)
    return export_module(
        network,
        out,
        sample_shape=(2, HORIZON),
        schedule=NoiseSchedule.cosine(100),
        clip=(-1, 1),
        output=OutputAffine(tuple((HIGH - LOW) / 2), tuple((HIGH + LOW) / 2), "m/s"),  # each axis by its own range
        conditions=[Condition("global_cond", (FEATURES,), "float32")],
        encoder=Encoder(observer, (Condition("observation", (OBSERVED, OBSERVATION), "float32"),), "global_cond"),
        defaults=Defaults("dpmpp_2m", 5, "trailing"),
        spec=network.spec(),
        name="point robot",
        provenance={"weights": "random"},
        options=Options(parity_timesteps=10),
    )


def control(sampler: Sampler, robot: PointRobot, chunks: int) -> tuple[Array, list[float]]:
    """Draw a chunk, run its first actions, look again. Returns the actions run (n, 2) in m/s, and ms for each chunk."""
    actions, latencies_ms = [], []
    for chunk in range(chunks):
        start = time.perf_counter()
        drawn = sampler.sample(1, seed=0, start=chunk, condition={"observation": robot.observe()})
        velocities = sampler.to_user(drawn)[0].T  # (HORIZON, 2)
        latencies_ms.append(1e3 * (time.perf_counter() - start))
        for velocity in velocities[:EXECUTED]:
            robot.move(velocity)
            actions.append(velocity)
    return np.array(actions), latencies_ms


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--chunks", type=int, default=20, help="chunks of actions to draw")
    parser.add_argument("--backend", default="onnxruntime", help="runtime of the sampler")
    args = parser.parse_args()
    robot = PointRobot(goal=(1.0, 2.0))
    with tempfile.TemporaryDirectory() as folder:
        bundle = export(Path(folder) / "bundle")
        with Sampler.load(bundle, backend=args.backend, warmup=True) as sampler:
            plan, units = sampler.plan(), sampler.manifest.output.units
            actions, latencies_ms = control(sampler, robot, args.chunks)
    print(
        f"{args.chunks} chunks of {HORIZON} actions, {EXECUTED} of each run; {plan.solver}, {plan.nfe} steps, batch 1"
    )
    print(f"latency of a chunk: median {np.median(latencies_ms):.2f} ms, largest {max(latencies_ms):.2f} ms")
    for axis, low, high in zip("xy", actions.min(axis=0), actions.max(axis=0), strict=True):
        print(f"actions along {axis}: {low:.2f} to {high:.2f} {units}")
    x, y = robot.position
    print(f"after {len(actions) * SECONDS:.1f} s the robot is at ({x:.2f}, {y:.2f}) m; its weights are random")


if __name__ == "__main__":
    main()
