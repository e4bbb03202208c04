"""One session of benchmarks: opens contenders, asserts their parity, times whole groups, and hands rows to pytest.

A group is what was asked of several contenders alike, such as one evaluation at batch 8. The first test of a group to
run measures all of its tests that were selected, interleaved; the others only show their part of it.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NoReturn, Self

import pytest

from benchmarks.models import KEPT, Model, prepare
from benchmarks.openings import Opened, Openings, Trial
from benchmarks.peers import plain_export
from benchmarks.specs import Options, Spec, batches_of, is_demanded, may_skip, name_of
from ddpm_deploy import Sampler
from ddpm_deploy.backends import Backend, open_backend
from ddpm_deploy.bench.limits import Limits, measure_limits
from ddpm_deploy.bench.measure import OPENINGS, Effort, interleave_anew
from ddpm_deploy.bench.record import OWN, TWIN, Parity, Row, of_products
from ddpm_deploy.bench.truth import Truth, noise_for, record_truth
from ddpm_deploy.bench.work import Work, count_work, percent_of_limit
from ddpm_deploy.errors import DdpmDeployError, ParityError
from ddpm_deploy.plan import Plan

PLAIN = KEPT / "plain"


@dataclass(frozen=True)
class Times:
    """Of one contender in its group."""

    seconds: Sequence[float]
    warmup_rounds: int = 0
    stable: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)
    openings: tuple[int, ...] = ()


TimeIt = Callable[[Opened], Mapping[str, Times]]


def in_rounds(effort: Effort, openings: int = OPENINGS) -> TimeIt:
    """The usual way to time a group: interleaved rounds, all contenders opened anew between parts of them."""

    def time_it(opened: Opened) -> dict[str, Times]:
        timed = interleave_anew(opened, effort, openings)
        return {
            name: Times(s, timed.warmup_rounds, name in timed.stable, openings=timed.openings)
            for name, s in timed.seconds.items()
        }

    return time_it


Build = Callable[[Spec, "Bench"], Trial]
Outcome = Row | Exception


@dataclass
class Bench:
    """All that the suites of one session share."""

    options: Options
    say: Callable[[str], object] = print
    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    sections: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    outcomes: dict[str, dict[Spec, Outcome]] = field(default_factory=dict)
    _open: dict[Any, Any] = field(default_factory=dict)
    _failed: dict[Any, Exception] = field(default_factory=dict)
    _made: dict[str, Any] = field(default_factory=dict)
    _kept: set[Any] = field(default_factory=set)
    _expected: dict[Any, Any] = field(default_factory=dict)
    counted: dict[int, Work] = field(default_factory=dict)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close_all(kept=True)

    # -- what is measured ---------------------------------------------------------------------------------------------

    @cached_property
    def model(self) -> Model:
        """Prepared when it is first asked for."""
        return prepare(self.options.model, self.options.checkpoint, self.say)

    @property
    def batches(self) -> tuple[int, ...]:
        """Of single evaluations."""
        return batches_of(self.options)

    @cached_property
    def truth(self) -> Truth:
        """The float32 reference, for up to the largest batch."""
        batch = max(self.batches)
        return record_truth(self.model.bundle, batch, weights=self.model.weights, threads=self.options.threads)

    def sampler(self, backend: str, precision: str, *, twin: bool = False) -> Sampler:
        """Our own, opened once; a twin is opened for itself."""
        return self.opened((backend, precision, twin), lambda: self._load(backend, precision))

    def graph(self, backend: str, role: str, precision: str, *, twin: bool = False) -> Backend:
        """A step or a sampler graph of the bundle."""
        settings = {"role": role, "precision": precision, "device": self.options.device}
        bundle, threads = self.model.bundle, self.options.threads
        return self.opened(
            (backend, role, precision, twin), lambda: open_backend(backend, bundle, threads=threads, **settings)
        )

    def expected(self, plan: Plan, batch: int) -> Any:
        """What the reference draws with a plan from seed 0: (batch, *S)."""
        key = (plan.to_json(), batch)
        if key not in self._expected:
            self._expected[key] = self.truth.samples(plan, *noise_for(self.model.bundle.manifest, batch))
        return self._expected[key]

    def opened(self, key: Any, open_it: Callable[[], Any], keep: bool = False) -> Any:
        """What `open_it` made the first time since `close_all`; an error of its is raised for the whole session.

        keep: through `close_all`, as it takes minutes to open.
        """
        if key in self._failed:
            raise self._failed[key]
        if key not in self._open:
            try:
                self._open[key] = open_it()
            except (DdpmDeployError, ImportError) as error:
                self._failed[key] = error
                raise
        if keep:
            self._kept.add(key)
        return self._open[key]

    def close_all(self, kept: bool = False) -> None:
        """Close what is open, and with `kept` what is to be kept too; it is opened anew when it is next asked for."""
        with ExitStack() as closing:
            for key in [key for key in self._open if kept or key not in self._kept]:
                closing.callback(self._open.pop(key).close)
        self._kept.intersection_update(self._open)
        gc.collect()

    def made_once(self, key: str, make: Callable[[], Any]) -> Any:
        """What needs no closing."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _load(self, backend: str, precision: str) -> Sampler:
        settings = {"backend": backend, "precision": precision, "device": self.options.device}
        return Sampler.load(self.model.bundle, threads=self.options.threads, **settings)

    @cached_property
    def limits(self) -> Limits:
        """What the machine can do at most, measured when it is first asked for."""
        self.say("measuring the limits of this machine")
        return measure_limits(self.options.threads, self.options.device)

    def work(self, batch: int) -> Work:
        """Of one forward of the original network, as a plain export writes it, or else as ours does."""
        if batch not in self.counted:
            self.counted[batch] = count_work(self._plain_model(), batch)
        return self.counted[batch]

    def _plain_model(self) -> bytes:
        bundle = self.model.bundle
        try:
            return plain_export(bundle, PLAIN)
        except Exception:  # diffusers cannot be this network, or its exporter fails on it: then ours is counted
            return bundle.open_bytes(bundle.file("denoiser", "fp32", "onnx"))

    def percent_of_limit(self, spec: Spec, seconds: Sequence[float], nfe: int) -> tuple[float, str] | None:
        """How near the median comes to what the hardware allows for the original network, and which limit that is.

        None where the limit of its precision could not be measured.
        """
        precision = of_products(spec.precision)
        if precision not in self.limits.products:
            return None
        per_evaluation_s = statistics.median(seconds) / nfe
        try:
            work = self.work(spec.batch)
        except ValueError as error:
            self.skipped["percent of the limit"] = str(error)
            return None
        percent, bound = percent_of_limit(per_evaluation_s, work, self.limits, precision)
        return percent, f"{bound}, {precision}"

    # -- measuring ----------------------------------------------------------------------------------------------------

    def row(self, spec: Spec, selected: Mapping[Spec, str], build: Build, time_it: TimeIt) -> Row:
        """The row of `spec`, measured with all of its group. selected: the test of each spec.

        Raises what went wrong with this one alone: ParityError, or why it is unavailable.
        """
        if spec not in self.outcomes.get(spec.group, {}):
            group = {other: test for other, test in selected.items() if other.group == spec.group}
            try:
                self.outcomes[spec.group] = self.measure(group, build, time_it)
            except Exception as error:  # what broke the group broke it for all: none of its tests measures it again
                self.outcomes[spec.group] = dict.fromkeys(group, error)
        outcome = self.outcomes[spec.group][spec]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def measure(self, group: Mapping[Spec, str], build: Build, time_it: TimeIt) -> dict[Spec, Outcome]:
        """Open and judge every contender, then time those that passed, and the twin of the first own one."""
        self.close_all(kept=True)
        outcomes: dict[Spec, Outcome] = {}
        trials: dict[Spec, Trial] = {}
        parity: dict[Spec, Parity | None] = {}
        for spec in [*group, *_twin_of(group)]:
            try:
                trials[spec] = build(spec, self)
                parity[spec] = trials[spec].judge()
            except (DdpmDeployError, ImportError) as error:
                trials.pop(spec, None)
                outcomes[spec] = error
        if not trials:
            return outcomes
        times = time_it(Openings(trials, lambda spec: build(spec, self), self.close_all))
        rows = {spec: self._row(spec, t, parity[spec], times[name_of(spec)], group) for spec, t in trials.items()}
        self.rows += rows.values()
        outcomes.update(rows)
        return outcomes

    def _row(self, spec: Spec, trial: Trial, parity: Parity | None, times: Times, group: Mapping[Spec, str]) -> Row:
        percent, limit = trial.limit(times.seconds) or (None, None)
        return Row(
            id=spec.id,
            suite=spec.suite,
            group=spec.group,
            contender=name_of(spec),
            kind=spec.kind,
            precision=spec.precision,
            batch=spec.batch,
            nfe=trial.nfe,
            samples_s=tuple(times.seconds),
            openings=times.openings,
            command=self._command(group.get(spec) or group[replace(spec, kind=OWN)]),
            solver=spec.solver,
            parity=parity,
            percent_of_limit=percent,
            limit=limit,
            warmup_rounds=times.warmup_rounds,
            stable=times.stable,
            note=trial.note,
            extra=times.extra,
        )

    def _command(self, test: str) -> str:
        return f"pytest '{test}' {self.options.flags()}"

    def skip_reason(self, spec: Spec, error: Exception) -> str | None:
        """Why a row may be left out; None where its absence is a failure."""
        if isinstance(error, ParityError) or not may_skip(spec, error):
            return None
        reason = " ".join(str(error).split())
        self.skipped[spec.id] = reason
        return reason

    @contextmanager
    def skipping(self, spec: Spec) -> Iterator[None]:
        """Skip the test where its contender is unavailable, and record why."""
        try:
            yield
        except (DdpmDeployError, ImportError) as error:
            reason = self.skip_reason(spec, error)
            if reason is None:
                raise
            pytest.skip(reason)

    def leave_out(self, what: str, reason: str, backend: str = "") -> NoReturn:
        """Skip a test that has no row, and record why; a failure where the environment demands its backend."""
        if backend and is_demanded(backend):
            pytest.fail(f"{what}: {reason}")
        self.skipped[what] = reason
        pytest.skip(reason)

    def note(self, section: str, **facts: Any) -> None:
        """A fact that is no row, for one of the report's sections."""
        self.sections.setdefault(section, []).append(facts)


def _twin_of(group: Mapping[Spec, str]) -> list[Spec]:
    """A second copy of the first own contender, opened for itself."""
    own = [spec for spec in group if spec.kind == OWN]
    return [replace(own[0], kind=TWIN)] if own else []
