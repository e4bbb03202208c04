"""One evaluation from beginning to end: real samples, features, every runtime, and the solver study if asked."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_deploy import __version__
from ddpm_deploy.bundle import Bundle, Manifest, sha256_of
from ddpm_deploy.errors import BackendUnavailable
from ddpm_deploy.evaluate import study as studies
from ddpm_deploy.evaluate.bound import ReverseChain, Task
from ddpm_deploy.evaluate.data import RealData, conditions_for
from ddpm_deploy.evaluate.features import Features
from ddpm_deploy.evaluate.figures import Figures, Judge
from ddpm_deploy.evaluate.jackknife import GROUPS
from ddpm_deploy.evaluate.measure import Request, draw, measure_bound
from ddpm_deploy.evaluate.pages import pictures_of
from ddpm_deploy.evaluate.record import Evaluation, Runtime, Study
from ddpm_deploy.evaluate.state import State
from ddpm_deploy.guidance import checked_guidance
from ddpm_deploy.plan import Plan
from ddpm_deploy.sampler import Sampler

FULL = "full"
RESPACED = "logsnr"  # even steps of lambda share the bits evenly, so that few of them bound nearly as well as all
OWN_CAUTION = "This is not FID: another data set or classifier gives other figures; compare them within this page only."
FILE_CAUTION = (
    "This is FID only if that file is the Inception network of the published figures, and the sets are theirs."
)


@dataclass(frozen=True)
class Settings:
    """What the figures depend on, beside the bundle, the data and the features.

    bound: rows of the chain, "full" for all T, or None for no bound. bound_samples, draws: real samples, and draws of
    noise for each. samples: how many are drawn, at least 10. guidance, interval: as in `Sampler.sample`. weights: of
    guidance, at which the first runtime draws as well.
    """

    bound: int | str | None = 64
    bound_samples: int = 256
    draws: int = 1
    samples: int = 1000
    seed: int = 0
    batch_size: int = 64
    guidance: float = 1.0
    interval: tuple[float, float] | None = None
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name, least in {"bound_samples": 1, "draws": 1, "samples": GROUPS, "batch_size": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least {least}")
        if self.bound not in (None, FULL) and not (isinstance(self.bound, int) and self.bound >= 2):
            raise ValueError(f"bound: got {self.bound!r}, expected {FULL!r}, at least 2 steps, or none")

    def check_guidance(self, data: RealData, manifest: Manifest) -> None:
        """ValueError for a weight, or an interval, that the model cannot be drawn with: for before long work."""
        steered = bool(self.request(data, manifest).conditions)
        weights = {self.guidance, *self.weights}
        for weight in sorted(weights - {1.0} or weights):
            checked_guidance(weight, self.interval, manifest, steered, 1)

    def chain(self, manifest: Manifest) -> ReverseChain:
        """The chain whose bound is measured."""
        if self.bound == FULL:
            return ReverseChain.of(manifest)
        return ReverseChain.of(manifest, int(self.bound or 0), RESPACED)

    def task(self, data: RealData, manifest: Manifest) -> Task:
        """Whose bound is measured: the first of the real samples held out, by their own conditions."""
        chosen = data.held_out.part(slice(self.bound_samples))
        conditions = conditions_for(chosen, manifest)
        return Task(chosen.x, conditions, chosen.levels, self.draws, self.seed, self.batch_size)

    def request(self, data: RealData, manifest: Manifest) -> Request:
        """What is drawn: by the conditions of the known samples in turn."""
        known = data.known.part(np.arange(self.samples) % len(data.known))
        conditions, asked = conditions_for(known, manifest), known.asked(manifest)
        return Request(self.samples, self.seed, self.batch_size, conditions, self.guidance, self.interval, asked)


@dataclass(frozen=True)
class StudyLists:
    """What the solver study combines."""

    solvers: Sequence[str] = studies.SOLVERS
    spacings: Sequence[str] = studies.CHOSEN_SPACINGS
    nfes: Sequence[int] = studies.NFES


@dataclass(frozen=True, eq=False)
class Evaluator:
    """Everything that the runtimes share. plan: what they draw with."""

    bundle: Bundle
    data: RealData
    features: Features
    plan: Plan
    settings: Settings

    @property
    def key(self) -> dict[str, Any]:
        """What a state must have been made with to be of use; not the weights, as it keeps the draws of each."""
        settings = asdict(self.settings)
        del settings["weights"]
        return {
            "version": __version__,
            "bundle": self.bundle.digest,
            "data": self.data.digest,
            "features": self.features.name,
            "plan": sha256_of(self.plan.to_json().encode()),
            **settings,
        }

    def work(self, runtimes: int) -> int:
        """Evaluations of the network, without the study's."""
        rows = 0 if self.settings.bound is None else len(self.settings.chain(self.bundle.manifest))
        pairs = min(self.settings.bound_samples, len(self.data.held_out)) * self.settings.draws
        draws = runtimes + len(self.settings.weights)
        return runtimes * rows * pairs + draws * self.settings.samples * self.plan.nfe

    def run(
        self,
        samplers: Mapping[str, Sampler],
        state: State,
        lists: StudyLists | None = None,
        tell: Callable[[int], object] = lambda done: None,
    ) -> Evaluation:
        """Measure every runtime, the first of which the others are compared with, and make the study with it.

        samplers: by the runtime's name. tell: called with how many evaluations were made.
        """
        manifest = self.bundle.manifest
        judge, request = Judge(self.data, self.features), self.settings.request(self.data, manifest)
        measured: list[Runtime] = []
        pictures: dict[str, bytes] = {}
        for name, sampler in samplers.items():
            bound = None
            if self.settings.bound is not None:
                chain, task = self.settings.chain(manifest), self.settings.task(self.data, manifest)
                bound = measure_bound(sampler, chain, task, f"bound {name}", state, tell)
            samples, _ = draw(sampler, self.plan, request, f"samples {name}", state, tell)
            measured.append(Runtime(name, bound, judge.judge(samples, request.asked)))
            pictures = pictures or dict(pictures_of(samples, self.data, manifest.clip))
        first = next(iter(samplers.values()))
        guided = {weight: self._guided(first, judge, request, weight, state, tell) for weight in self.settings.weights}
        study = None if lists is None else self._study(first, judge, request, state, lists, tell)
        return Evaluation(self.about(first), judge.baseline(request.n), tuple(measured), guided, study, pictures)

    def _guided(
        self,
        sampler: Sampler,
        judge: Judge,
        request: Request,
        weight: float,
        state: State,
        tell: Callable[[int], object],
    ) -> Figures:
        """The same noise and conditions under another weight."""
        samples, _ = draw(sampler, self.plan, replace(request, guidance=weight), f"guided {weight:g}", state, tell)
        return judge.judge(samples, request.asked)

    def _study(
        self,
        sampler: Sampler,
        judge: Judge,
        request: Request,
        state: State,
        lists: StudyLists,
        tell: Callable[[int], object],
    ) -> Study:
        found = studies.entries(sampler, lists.solvers, lists.spacings, lists.nfes, state, request, lambda: tell(0))
        return Study(tuple(studies.run_trials(sampler, found, judge, request, state, tell)))

    def about(self, sampler: Sampler) -> dict[str, Any]:
        """Where the figures come from."""
        model, settings = self.bundle.manifest.model, self.settings
        given = self.features.name.find("sha256") >= 0
        return {
            "name": f"{model.name} {model.version}",
            "model": f"{model.name} {model.version}, {self.bundle.digest[:19]}…",
            "bundle": self.bundle.digest,
            "data": f"{self.data.name}, {len(self.data.known)} known and {len(self.data.held_out)} held out",
            "data_digest": self.data.digest,
            "held_out": len(self.data.held_out),
            "split": self.data.split,
            "features": self.features.name,
            "caution": FILE_CAUTION if given else OWN_CAUTION,
            "plan": f"{self.plan.solver}, {self.plan.nfe} evaluations, at t = "
            + ", ".join(f"{t:g}" for t in self.plan.t[:MOST_SHOWN]) + (" …" if len(self.plan) > MOST_SHOWN else ""),
            "guidance": settings.guidance,
            "bound": settings.bound or "none",
            "samples": settings.samples,
            "seed": settings.seed,
            "batch_size": settings.batch_size,
            "threads": sampler.backend.threads,
            "machine": f"{platform.machine()}, {platform.system()}",
            "version": f"ddpm-deploy {__version__}, numpy {np.__version__}, Python {platform.python_version()}",
            "made": datetime.now(UTC).strftime("%Y-%m-%d"),
        }  # fmt: skip


MOST_SHOWN = 16  # timesteps


def open_samplers(
    stack: ExitStack,
    bundle: Bundle,
    runtimes: Sequence[tuple[str, str]],
    device: str,
    threads: int | None,
    skip: Callable[[str, str], object] | None = None,
) -> dict[str, Sampler]:
    """A sampler for each (backend, precision), by a name for people; closed with the stack.

    skip: told the name of each but the first that this machine cannot run, and why, so that it is left out; None
    refuses it.
    """
    opened: dict[str, Sampler] = {}
    for backend, precision in runtimes:
        name = f"{backend} {precision}{'' if device == 'cpu' else f' on {device}'}"
        try:
            sampler = Sampler.load(bundle, backend=backend, precision=precision, device=device, threads=threads)
        except BackendUnavailable as error:
            if skip is None or not opened:
                raise
            skip(name, str(error))
        else:
            opened[name] = stack.enter_context(sampler)
    return opened


def plan_from(path: Path | None, sampler: Sampler, solver: str | None, steps: int | None, spacing: str | None) -> Plan:
    """The plan to draw with: from a file, or as `sample` would choose it."""
    if path is None:
        return sampler.plan(solver, steps, spacing)
    if (solver, steps, spacing) != (None, None, None):
        raise ValueError("--plan: given together with --solver, --steps or --spacing; choose one")
    return Plan.load(path)
