"""A run from its first check to its report: for each group parity, then interleaved rounds; facts of the GPU last."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path as Folder
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.gpu import paths, peers
from benchmarks.gpu.asked import Asked, Group
from benchmarks.gpu.busy import host_facts, kernel_facts, one_picture, stream_of
from benchmarks.gpu.clock import Clock, OutOfTime
from benchmarks.gpu.device_facts import snapshot
from benchmarks.gpu.findings import Findings, make_report
from benchmarks.gpu.invariance import batch_invariance
from benchmarks.gpu.models import torch_model, with_graphs
from benchmarks.gpu.pace import Pace, longest_s
from benchmarks.gpu.paths import Path, open_own
from benchmarks.gpu.skipping import Skipping
from benchmarks.gpu.subject import Subject
from benchmarks.models import Model
from benchmarks.specs import Spec, name_of
from ddpm_deploy import Sampler
from ddpm_deploy.backends.base import usable_cpus
from ddpm_deploy.bench.limits import measure_limits
from ddpm_deploy.bench.measure import Contender, Rounds, interleave, round_seconds
from ddpm_deploy.bench.record import OWN, PEER, TWIN, Parity, Report, Row, write_report

RESERVE_S = 45.0  # of the time, for the facts that come after the groups
OPEN_S = 5.0  # to open what is not known to take longer, beside what it draws
EXPORT_S = 120.0
FACTS_S = 3.0  # of one path
COMPILE_S: Mapping[str, float] = {**paths.SECONDS, **peers.SECONDS}
BY_TORCH = {paths.COMPILED, *peers.COMPILEDS}  # what one of them has taken, the next is expected to take
COMPILES = "torch.compile"
PART = 0.1  # of the time that is left, for what compiles in a group where that matters little
CROWDED = 64  # the batch from which on a group's memory is given back after it
DIGITS = 0.4  # of the time that the larger network takes to compile

Open = Callable[[], Path]
Say = Callable[[str], object]
Ready = Mapping[Spec, tuple[Path, Parity, float]]


class Run:
    """A run. What it has found so far is in `findings`."""

    def __init__(self, asked: Asked, say: Say) -> None:
        self.asked, self._say = asked, say
        self.clock = Clock(60 * asked.minutes)
        self.findings = Findings(asked)
        self.pace = Pace(asked.effort)
        self._subjects: dict[str, Subject] = {}
        self._timed: list[tuple[Group, Spec]] = []
        self._closing = ExitStack()

    def run(self) -> Report:
        """Everything that fits into the time; the report is written after every part of it."""
        with self._closing:
            self._look("before")
            self._measure_limits()
            self._open_models()
            for group in self.asked.groups():
                with self._skipping(group.title):
                    self._measure_if_it_fits(group)
            self._facts()
            self._look("after")
            return self._save()

    def prepare(self) -> None:
        """Make what is kept between runs: the graphs, and what torch.compile leaves in its caches."""
        with self._closing:
            self._open_models()
            for group in (group for group in self.asked.groups() if group.compiled):
                for spec, open_it in contenders(group, self._subjects[group.model], rehearse=self.asked.rehearse):
                    if spec.contender in COMPILE_S:
                        self._say(f"preparing {spec.id}")
                        with self._skipping(spec.id), self._spending(spec, group):
                            open_it().draw()

    # -- before -------------------------------------------------------------------------------------------------------

    def _measure_limits(self) -> None:
        rehearse = self.asked.rehearse
        self._say("limits of the device")
        with self._skipping("limits"):
            how: Any = {"precisions": ("fp32",) if rehearse else self.asked.precisions}
            budget_s = 0.2 if rehearse else 6.0
            self.findings.limits = measure_limits(usable_cpus(), self.asked.device, **how, budget_s=budget_s)
        free_cache()

    def _open_models(self) -> None:
        folder = Folder(self._closing.enter_context(TemporaryDirectory()))
        for name in dict.fromkeys(group.model for group in self.asked.groups()):
            self._say(f"model {name}")
            model = torch_model(name, folder)
            with self._skipping(f"{name}: graphs"):
                model = self._with_graphs(model)
            self.findings.models.append(model)
            self._subjects[name] = Subject(model, self.asked.device)
            self._closing.callback(self._subjects[name].close)

    def _with_graphs(self, model: Model) -> Model:
        if self.asked.rehearse:
            return model
        scale = DIGITS if model.name == "digits" else 1.0
        with self.clock.spending(("export", model.name), scale * EXPORT_S, 0.5):
            return with_graphs(model, self.asked.precisions, self._say)

    # -- groups -------------------------------------------------------------------------------------------------------

    def _measure_if_it_fits(self, group: Group) -> None:
        try:
            self.clock.require(OPEN_S + self._reserve_s)  # before the reference is asked
            self.clock.require(OPEN_S + self.pace.group_s(group, self._reference_s(group)) + self._reserve_s)
        except OutOfTime:
            self.findings.untimed.append(group)
            return
        self._measure(group)
        self._look(f"after {group.title}")
        self._save()

    def _measure(self, group: Group) -> None:
        """Open and judge all contenders, then time those that passed."""
        subject = self._subjects[group.model]
        ready: dict[Spec, tuple[Path, Parity, float]] = {}
        with ExitStack() as closing:
            for spec, open_it in contenders(group, subject, rehearse=self.asked.rehearse):
                if spec.kind == TWIN and group.spec(spec.contender) not in ready:
                    continue  # it stands beside its row or not at all
                with self._skipping(spec.id), self._spending(spec, group):
                    path = open_it()
                    closing.callback(path.close)
                    ready[spec] = (path, subject.reference.judge(path, group.precision, group.batch), _seconds(path))
            with self._skipping(group.title):
                self._time(group, ready)
        if group.batch >= CROWDED:
            ready.clear()
            subject.free()
            free_cache()

    def _time(self, group: Group, ready: Ready) -> None:
        if not ready:
            return
        round_s = round_seconds([seconds for _, _, seconds in ready.values()])
        effort = self.asked.effort(round_s)
        self.clock.require(longest_s(effort, round_s) + self._reserve_s)
        timed = interleave([Contender(name_of(spec), path.draw) for spec, (path, *_) in ready.items()], effort)
        self.findings.rows += [self._row(group, spec, *ready[spec][:2], timed) for spec in ready]
        self._timed += [(group, spec) for spec in ready]
        for spec in ready:
            self.pace.learn(group, name_of(spec), statistics.median(timed.seconds[name_of(spec)]))
        best = min(timed.seconds, key=lambda name: statistics.median(timed.seconds[name]))
        self._say(f"{group.title}: {best} is the fastest of {len(ready)}; {self.clock.left_s:.0f} s left")

    def _row(self, group: Group, spec: Spec, path: Path, parity: Parity, timed: Rounds) -> Row:
        seconds, nfe = timed.seconds[name_of(spec)], path.plan.nfe
        percent, limit = self._percent(group, statistics.median(seconds) / nfe) or (None, None)
        return Row(
            id=spec.id,
            suite=spec.suite,
            group=spec.group,
            contender=name_of(spec),
            kind=spec.kind,
            precision=spec.precision,
            batch=spec.batch,
            nfe=nfe,
            samples_s=tuple(seconds),
            command=self.asked.command(group),
            solver=spec.solver,
            parity=parity,
            percent_of_limit=percent,
            limit=limit,
            warmup_rounds=timed.warmup_rounds,
            stable=name_of(spec) in timed.stable,
            note=path.note,
        )

    def _percent(self, group: Group, seconds: float) -> tuple[float, str] | None:
        """Of the limit of the device that binds, and which that is."""
        limits = self.findings.limits
        if limits is None or group.precision not in limits.products:
            return None
        with self._skipping("percent of the limit"):
            from ddpm_deploy.bench.work import percent_of_limit

            work = self._subjects[group.model].work(group.batch)
            self.findings.work[f"{group.model}, batch {group.batch}"] = {"gflop": work.flops / 1e9}
            percent, bound = percent_of_limit(seconds, work, limits, group.precision)
            return percent, f"{bound}, {group.precision}"
        return None

    # -- facts --------------------------------------------------------------------------------------------------------

    def _facts(self) -> None:
        """Of every own path that was timed: what the device does in its loop, and what a batch does to a sample."""
        if self.asked.device != "cpu":
            self._busy()
        for what, sampler, sizes in self._own_paths():
            with self._skipping(f"{what}, batch invariance"), self.clock.spending("invariance", FACTS_S):
                self.findings.invariance[what] = batch_invariance(sampler(), sizes)

    def _busy(self) -> None:
        """The profiler comes last, as it may slow down what is timed after it."""
        at_one = {what: sampler for what, sampler, sizes in self._own_paths() if sizes[0] == 1}
        for what, sampler in at_one.items():
            with self._skipping(f"{what}, wall time"), self.clock.spending("wall", FACTS_S):
                self.findings.busy[what] = host_facts(one_picture(sampler()), stream_of(sampler()))
        for what, facts in self.findings.busy.items():
            with self._skipping(f"{what}, kernels"), self.clock.spending("kernels", FACTS_S):
                facts.update(kernel_facts(one_picture(at_one[what]()), facts["wall_s"]))

    def _own_paths(self) -> Iterator[tuple[str, Callable[[], Sampler], tuple[int, ...]]]:
        """(name, its sampler, batches for which nothing has to be compiled)."""
        batches: dict[tuple[str, str, str], set[int]] = {}
        for group, spec in self._timed:
            if spec.kind == OWN:
                batches.setdefault((group.model, spec.contender, spec.precision), set()).add(group.batch)
        for (name, contender, precision), timed in batches.items():
            sizes = tuple(sorted(timed)) if contender == paths.COMPILED else self.asked.sizes
            yield f"{name}: {contender} {precision}", partial(self._subjects[name].sampler, contender, precision), sizes

    def _look(self, when: str) -> None:
        facts = snapshot(self.asked.device, when)
        self.findings.gpu += [] if facts is None else [facts]

    # -- manners ------------------------------------------------------------------------------------------------------

    def _spending(self, spec: Spec, group: Group) -> Any:
        """The time for a contender; where it matters little, what compiles may take a small part of it only."""
        reference_s = self._reference_s(group)
        draws_s = self.pace.draws_s(group, name_of(spec), reference_s)
        keep_s = self.pace.timing_s(group, reference_s) + self._reserve_s
        if spec.contender not in COMPILE_S:
            return self.clock.spending(spec.id, OPEN_S + draws_s, keep_s=keep_s)
        what = COMPILES if spec.contender in BY_TORCH else (spec.contender, spec.precision, _built_for(spec))
        guess_s = (DIGITS if group.model == "digits" else 1.0) * COMPILE_S[spec.contender]
        part = 1.0 if group.compiled else PART
        return self.clock.spending((what, group.model), guess_s, part, draws_s + keep_s)

    def _reference_s(self, group: Group) -> float:
        return self._subjects[group.model].reference.seconds(group.batch)

    def _skipping(self, what: str) -> Skipping:
        return Skipping(what, self.findings.skipped, self._say)

    @property
    def _reserve_s(self) -> float:
        return 0.0 if self.asked.rehearse else RESERVE_S

    def _save(self) -> Report:
        report = make_report(self.findings)
        write_report(report, self.asked.out)
        return report


def contenders(group: Group, subject: Subject, *, rehearse: bool) -> Iterator[tuple[Spec, Open]]:
    """Ours with a twin of the first, then the peers; those of ours that compile come last."""
    late = [] if rehearse else [paths.COMPILED]
    own = [name for name in paths.OWN if name != paths.COMPILED]
    for name in own:
        yield group.spec(name), partial(open_own, name, group, subject)
    yield group.spec(own[0], TWIN), partial(open_own, own[0], group, subject, twin=True)
    for name, open_it in peers.peers_of(group, compiles=not rehearse).items():
        yield group.spec(name, PEER), partial(open_it, group, subject)
    for name in late:
        yield group.spec(name), partial(open_own, name, group, subject)


def _built_for(spec: Spec) -> int | None:
    """The batch, where a contender is made anew for each."""
    return spec.batch if spec.contender in peers.ENGINE_LOOPS else None


def free_cache() -> None:
    """Let torch give memory back to the driver, from which other runtimes take theirs."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _seconds(path: Path) -> float:
    """Of a call that is not the first."""
    began = time.perf_counter()
    path.draw()
    return time.perf_counter() - began
