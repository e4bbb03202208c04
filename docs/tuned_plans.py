"""Timesteps that were tuned against all hand-made ones: `python docs/tuned_plans.py digits|shapes [--out FOLDER]`.

For each solver and number of evaluations, samples are drawn with the tuned timesteps and with every hand-made spacing,
from the same noise, which the tuning has not seen, and for the same conditions. They are judged by their distance to
the model's own fine solution from that noise, and by the Fréchet distance to real samples held out. The result,
`NAME.json`, is what `docs/make_quality.py` writes into the page; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ddpm_deploy import Sampler
from ddpm_deploy.bundle import default_bundle, read_bundle
from ddpm_deploy.evaluate.data import RealData, conditions_for, open_data
from ddpm_deploy.evaluate.features import Features, open_features
from ddpm_deploy.evaluate.frechet import frechet_distance
from ddpm_deploy.evaluate.jackknife import paired_error
from ddpm_deploy.evaluate.measure import Request, draw
from ddpm_deploy.evaluate.state import State
from ddpm_deploy.evaluate.study import TUNED
from ddpm_deploy.plan import Plan
from ddpm_deploy.spacing import SPACINGS
from ddpm_deploy.tuning.plan import Teacher, choose_timesteps, fine_plan

NFES = (5, 6, 7, 8)
GROUPS = 20  # of the jackknife
SEED = 1  # of the noise of what is judged
KEPT = 1000  # of the known samples, whose conditions are drawn; the tuning draws by those of others

Array = NDArray[Any]


@dataclass(frozen=True)
class Subject:
    """samples: that are judged against real ones. near: of them, how many are held against the fine solution.

    taught: trajectories that the tuning knows.
    """

    guidance: float
    samples: int
    near: int
    taught: int
    solvers: tuple[str, ...]


SUBJECTS = {
    "digits": Subject(guidance=1.0, samples=4000, near=1000, taught=128, solvers=("ddim", "dpmpp_2m", "unipc")),
    "shapes": Subject(guidance=1.0, samples=1000, near=1000, taught=128, solvers=("unipc", "dpmpp_2m")),
}


@dataclass(frozen=True)
class Difference:
    """Tuned less the best hand-made, whose name is `rival`; error: of the difference, as both share their noise."""

    tuned: float
    best: float
    rival: str
    error: float

    @property
    def sigmas(self) -> float:
        """How many errors the tuned one is better by; none where it is the best hand-made one."""
        return (self.best - self.tuned) / self.error if self.error else 0.0


@dataclass(frozen=True)
class Contest:
    """near: root mean square distance to the fine solution, in network range. real: Fréchet distance to real ones."""

    solver: str
    nfe: int
    timesteps: tuple[float, ...]
    near: Difference
    real: Difference


class Arena:
    """Draws and judges the plans of one model."""

    def __init__(self, name: str, sampler: Sampler, data: RealData, features: Features, state: State) -> None:
        self.subject = SUBJECTS[name]
        self.sampler, self.data, self.features, self.state = sampler, data, features, state

    def contest(self, solver: str, nfe: int) -> Contest:
        """The tuned plan and those of all spacings."""
        timesteps = self.tuned(solver, nfe)
        samples = {TUNED: self.draw(self.sampler.plan(solver, timesteps=timesteps), f"{solver} {nfe} {TUNED}")}
        for spacing in SPACINGS:
            samples[spacing] = self.draw(self.sampler.plan(solver, nfe, spacing), f"{solver} {nfe} {spacing}")
        return Contest(solver, nfe, timesteps, self.nearness(samples), self.realness(samples))

    def tuned(self, solver: str, nfe: int) -> tuple[float, ...]:
        """The timesteps, which the state keeps."""
        name = f"tuned {solver} {nfe}"
        kept = self.state.load(name)
        if kept is None:
            kept = {"timesteps": np.array(choose_timesteps(self.teacher, nfe, solver).timesteps)}
            self.state.save(name, kept, last=True)
        return tuple(kept["timesteps"].tolist())

    def draw(self, plan: Plan, name: str, count: int | None = None) -> Array:
        """Samples by the conditions of the known ones in turn."""
        n = count or self.subject.samples
        known = self.data.known.part(np.arange(n) % KEPT)
        conditions = conditions_for(known, self.sampler.manifest)
        request = Request(n, SEED, 64, conditions, self.subject.guidance)
        return draw(self.sampler, plan, request, name, self.state, lambda done: None)[0]

    @cached_property
    def teacher(self) -> Teacher:
        count = self.subject.taught
        conditions = conditions_for(self.data.known.part(slice(KEPT, KEPT + count)), self.sampler.manifest)
        return Teacher(self.sampler, count, guidance=self.subject.guidance, condition=conditions)

    @cached_property
    def ends(self) -> Array:
        """Of the fine solution, from the noise of the first samples."""
        return self.draw(fine_plan(self.sampler.manifest), "fine", self.subject.near)

    @cached_property
    def real(self) -> Array:
        return self.features.of(self.data.held_out.x)

    def nearness(self, samples: Mapping[str, Array]) -> Difference:
        squares = {name: self._squares(each) for name, each in samples.items()}
        return compared(squares, lambda each: float(np.sqrt(each.mean())))

    def realness(self, samples: Mapping[str, Array]) -> Difference:
        features = {name: self.features.of(each) for name, each in samples.items()}
        return compared(features, lambda each: frechet_distance(each, self.real))

    def _squares(self, samples: Array) -> Array:
        apart = (samples[: len(self.ends)] - self.ends).reshape(len(self.ends), -1)
        return (apart.astype(np.float64) ** 2).mean(axis=1, keepdims=True)


def compared(values: Mapping[str, Array], figure: Callable[[Array], float]) -> Difference:
    """values: (n, D) of each plan, sample by sample."""
    found = {name: figure(each) for name, each in values.items()}
    rival = min((name for name in found if name != TUNED), key=lambda name: found[name])
    error = paired_error(figure, values[TUNED], values[rival], GROUPS)
    return Difference(found[TUNED], found[rival], rival, error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SUBJECTS)
    parser.add_argument("--out", type=Path, default=Path("runs/quality/plans"))
    parser.add_argument("--threads", type=int, help="of one call; default: every CPU that the process may use")
    parser.add_argument("--restart", action="store_true", help="discard what an earlier run left in --out")
    args = parser.parse_args()
    subject, bundle = SUBJECTS[args.name], read_bundle(default_bundle(args.name))
    data = open_data(args.name, bundle.manifest)
    state = State.open(
        args.out / args.name, {"bundle": bundle.digest, "data": data.digest, **asdict(subject)}, args.restart
    )
    features = open_features(data)
    found = {"model": args.name, "features": features.name, **asdict(subject), "contests": []}
    with Sampler.load(bundle, threads=args.threads) as sampler:
        arena = Arena(args.name, sampler, data, features, state)
        for solver, nfe in tqdm([(solver, nfe) for solver in subject.solvers for nfe in NFES], unit="contest"):
            found["contests"].append(asdict(told(arena.contest(solver, nfe))))
            (args.out / f"{args.name}.json").write_text(json.dumps(found, indent=1))


def told(contest: Contest) -> Contest:
    near, real = contest.near, contest.real
    tqdm.write(
        f"{contest.solver:9} {contest.nfe}  near {near.tuned:.4f} / {near.best:.4f} {near.rival} ({near.sigmas:+.1f})  "
        f"Fréchet {real.tuned:.4f} / {real.best:.4f} {real.rival} ({real.sigmas:+.1f})  {contest.timesteps}"
    )
    return contest


if __name__ == "__main__":
    main()
