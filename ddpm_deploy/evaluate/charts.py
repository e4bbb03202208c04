"""The plots of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ddpm_deploy.bench.report import words
from ddpm_deploy.bench.report.document import Chart, Point, Series, Style
from ddpm_deploy.evaluate.pareto import Trial
from ddpm_deploy.evaluate.record import Runtime, Study
from ddpm_deploy.evaluate.study import FULL

TONES = 6
FRONT = Style("twin", 0)


def terms_over_t(runtimes: Sequence[Runtime]) -> Chart:
    """Bits/dim of each step of the chain."""
    series = [
        Series(runtime.name, Style(f"own{k % TONES}", k // TONES), tuple(_terms(runtime)), marks=False)
        for k, runtime in enumerate(runtimes)
        if runtime.bound is not None
    ]
    return Chart("The bound, term by term", "t", "bits/dim", tuple(series), y_log=True)


def sum_over_t(runtimes: Sequence[Runtime]) -> Chart:
    """Bits/dim of all steps from the noise down to t."""
    series = [
        Series(runtime.name, Style(f"own{k % TONES}", k // TONES), tuple(_sums(runtime)), marks=False)
        for k, runtime in enumerate(runtimes)
        if runtime.bound is not None
    ]
    return Chart("Summed from the noise down", "t", "bits/dim", tuple(series))


def against_evaluations(study: Study, spacing: str) -> Chart:
    """Distance of every solver with one spacing, by number of evaluations."""
    return _against(study, spacing, "evaluations", lambda trial: float(trial.nfe))


def against_time(study: Study) -> Chart:
    """Distance by measured time: everything, and the front."""
    solvers = dict.fromkeys(trial.solver for trial in study.trials)
    series = [Series("Pareto front", FRONT, tuple(_points(study.front, _milliseconds)), marks=False)]
    series += [
        Series(solver, _style(study, solver),
               tuple(_points([t for t in study.trials if t.solver == solver], _milliseconds)), line=False)
        for solver in solvers
    ]  # fmt: skip
    rule = (study.reference.distance, "the full chain")
    return Chart("Every plan", "ms a sample", "Fréchet distance", tuple(series), x_log=True, y_log=True, rule=rule)


def _against(study: Study, spacing: str, axis: str, place: Callable[[Trial], float]) -> Chart:
    series = []
    for solver in dict.fromkeys(trial.solver for trial in study.trials):
        mine = [t for t in study.trials if t.solver == solver and t.spacing == spacing]
        if mine:
            series.append(Series(solver, _style(study, solver), tuple(_points(mine, place))))
    rule = (study.reference.distance, "the full chain")
    return Chart(f"Spacing: {spacing}", axis, "Fréchet distance", tuple(series), x_log=True, y_log=True, rule=rule)


def spacings_of(study: Study) -> list[str]:
    """Those that were tried, apart from the full chain."""
    return [name for name in dict.fromkeys(trial.spacing for trial in study.trials) if name != FULL]


def _style(study: Study, solver: str) -> Style:
    place = list(dict.fromkeys(trial.solver for trial in study.trials)).index(solver)
    return Style(f"own{place % TONES}", place // TONES)


def _points(trials: Sequence[Trial], place: Callable[[Trial], float]) -> list[Point]:
    return [
        Point(place(trial), trial.distance, f"{trial.label}: {words.number(trial.distance)}",
              max(trial.distance - trial.error, trial.distance / 10), trial.distance + trial.error)
        for trial in sorted(trials, key=place)
        if trial.distance > 0
    ]  # fmt: skip


def _milliseconds(trial: Trial) -> float:
    return trial.seconds * 1e3


def _terms(runtime: Runtime) -> list[Point]:
    assert runtime.bound is not None
    pairs = zip(runtime.bound.t.tolist(), runtime.bound.per_step.tolist(), strict=True)
    return [Point(t, term, f"t = {t:g}: {words.number(term)}") for t, term in pairs if term > 0]


def _sums(runtime: Runtime) -> list[Point]:
    assert runtime.bound is not None
    pairs = zip(runtime.bound.t.tolist(), runtime.bound.per_step.cumsum().tolist(), strict=True)
    return [Point(t, total, f"down to t = {t:g}: {words.number(total)}") for t, total in pairs]
