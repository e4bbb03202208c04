"""What an evaluation's page says: in words, tables, plots and pictures."""

from __future__ import annotations

from collections.abc import Sequence

from ddpm_deploy.bench.report import words
from ddpm_deploy.bench.report.document import (
    Bullets,
    Figures,
    Inline,
    Line,
    Page,
    Paragraph,
    Picture,
    Section,
    Strong,
    Table,
)  # fmt: skip
from ddpm_deploy.evaluate import charts, figures
from ddpm_deploy.evaluate.pareto import MARGIN, SIGMAS, Trial
from ddpm_deploy.evaluate.record import Evaluation, Runtime, Study

SAMPLE_COLUMNS = ("", "samples>", "Fréchet>", "kernel ×10³>", "sliced W>", "precision>", "recall>",
                  "nearest known: median>", "least>", "as asked>")  # fmt: skip
REAL = "real samples"
CAPTIONS = {
    "samples.png": "Samples of {runtime}, drawn with {plan}.",
    "real.png": "Real samples held out.",
    "nearest.png": "The samples that are nearest to a known one, and below each the known one.",
}


def page(found: Evaluation) -> Page:
    """The whole report."""
    about = found.about
    line = f"{about['model']} · {about['data']} · {about['made']}"
    parts = (_bound(found), _samples(found), _guided(found), _pictures(found), _study(found), _how(found))
    return Page(str(about["name"]), "evaluation", line, tuple(summary(found)), tuple(p for p in parts if p is not None))


def summary(found: Evaluation) -> list[Line]:
    """What a hurried reader wants to know."""
    first, *others = found.runtimes
    lines: list[Line] = []
    if first.bound is not None:
        value = with_error(first.bound.bits, first.bound.error)
        kind = "full bound" if found.about["bound"] == "full" else f"bound respaced to {found.about['bound']} steps"
        lines.append((Strong(f"{value} bits/dim"), f" on {len(first.bound.prior)} real samples, {kind}, {first.name}."))
    lines += [_apart(other, first) for other in others if other.differs(first) is not None]
    if first.figures is not None and found.baseline is not None:
        value, real = (with_error(each.frechet, each.frechet_error) for each in (first.figures, found.baseline))
        lines.append(
            (Strong(f"Fréchet distance {value}"), f"; real samples get {real}. Features: {found.about['features']}.")
        )
        if first.figures.class_accuracy is not None:
            lines.append(
                (Strong(f"{first.figures.class_accuracy:.1%}"), " of what was asked for is seen by the classifier.")
            )
    if found.study is not None:
        lines.append(_advice(found.study))
    lines += [(f"Left out: {name}, as it cannot be had here: {reason}",) for name, reason in found.left_out.items()]
    return lines


def _apart(runtime: Runtime, first: Runtime) -> Line:
    value, error = runtime.differs(first) or (0.0, 0.0)
    return (
        f"{runtime.name}: ",
        Strong(f"{value:+.1e} bits/dim"),
        f" (± {error:.0e}) from {first.name}, on the same noise.",
    )


def _advice(study: Study) -> Line:
    trial, full = study.recommended, study.reference
    return (
        "Recommended: ", Strong(trial.label), f" evaluations: Fréchet {with_error(trial.distance, trial.error)}, "
        f"{words.number(trial.seconds * 1e3)} ms a sample; the full chain: {with_error(full.distance, full.error)}, "
        f"{words.number(full.seconds * 1e3)} ms.",
    )  # fmt: skip


def _bound(found: Evaluation) -> Section | None:
    measured = [runtime for runtime in found.runtimes if runtime.bound is not None]
    if not measured:
        return None
    rows = [_bound_row(runtime, found.runtimes[0]) for runtime in measured]
    noise = measured[0].bound.noise_error if measured[0].bound is not None else None
    more = "" if noise is None else f" More draws of noise would take away no more than ± {words.number(noise)} of it."
    note = (
        "L_T is what is left of the sample at the end of the forward process, L_0 the cost of the real values given "
        f"x_1; the error is the standard error over samples.{more}"
    )
    table = Table(("", "bits/dim>", "±>", "L_T>", "L_1 … L_T-1>", "L_0>", "from the first>", "±>"), tuple(rows))
    panels = Figures((charts.terms_over_t(measured), charts.sum_over_t(measured)), "Where the bits are spent.")
    return Section("bound", "Bits per dimension", (table, Paragraph((note,), small=True), panels))


def _bound_row(runtime: Runtime, first: Runtime) -> tuple[Inline, ...]:
    bound = runtime.bound
    assert bound is not None
    apart = None if runtime is first else runtime.differs(first)
    differs = (words.NONE, words.NONE) if apart is None else (f"{apart[0]:+.1e}", f"{apart[1]:.0e}")
    parts = [words.number(value, 4) for _, value in bound.parts()]
    return (runtime.name, f"{bound.bits:.4f}", words.number(bound.error, 2), *parts, *differs)


def _samples(found: Evaluation) -> Section | None:
    drawn = [runtime for runtime in found.runtimes if runtime.figures is not None]
    if not drawn or found.baseline is None:
        return None
    rows = [figures_row(REAL, found.baseline)]
    rows += [figures_row(runtime.name, runtime.figures) for runtime in drawn if runtime.figures is not None]
    about = found.about
    notes = Bullets((
        (f"All distances are to {about['held_out']} real samples held out ({about['split']}); “{REAL}” are as many of "
         "the known ones, so that line is what a perfect model would get.",),
        (f"Features: {about['features']}. ", Strong(about["caution"])),
        ("Nearest known: Euclidean distance to the nearest of the known samples, in network range; a copy is at 0. For "
         f"“{REAL}”, of those held out.",),
    ))  # fmt: skip
    return Section("samples", "Samples against real ones", (Table(SAMPLE_COLUMNS, tuple(rows), frozenset({0})), notes))


def _guided(found: Evaluation) -> Section | None:
    if not found.guided:
        return None
    rows = [figures_row(f"guidance {weight:g}", judged) for weight, judged in found.guided.items()]
    note = f"Drawn by {found.runtimes[0].name} from the same noise and for the same conditions at every weight."
    return Section("guidance", "By weight of guidance", (Table(SAMPLE_COLUMNS, tuple(rows)), Paragraph((note,))))


def figures_row(name: str, judged: figures.Figures) -> tuple[Inline, ...]:
    """One line of the table of samples."""
    accuracy = words.NONE if judged.class_accuracy is None else f"{judged.class_accuracy:.1%}"
    return (
        name,
        str(judged.samples),
        with_error(judged.frechet, judged.frechet_error),
        with_error(judged.kernel * 1e3, judged.kernel_error * 1e3),
        with_error(judged.sliced, judged.sliced_error),
        f"{judged.precision:.2f}",
        f"{judged.recall:.2f}",
        words.number(judged.nearest_median),
        words.number(judged.nearest_least),
        accuracy,
    )


def _pictures(found: Evaluation) -> Section | None:
    if not found.pictures:
        return None
    told = {"runtime": found.runtimes[0].name, "plan": found.about["plan"]}
    shown = [Picture(png, name, CAPTIONS[name].format(**told)) for name, png in found.pictures.items()]
    return Section("pictures", "Pictures", tuple(shown))


def _study(found: Evaluation) -> Section | None:
    if found.study is None:
        return None
    study = found.study
    panels = [charts.against_evaluations(study, spacing) for spacing in charts.spacings_of(study)]
    caption = "Fréchet distance to the real samples held out, less is better; whiskers are standard errors."
    front = Table(
        ("on the Pareto front", "evaluations>", "Fréchet>", "ms a sample>"),
        tuple(trial_row(trial) for trial in study.front),
        frozenset({study.front.index(study.recommended)} if study.recommended in study.front else ()),
    )
    return Section("study", "Solvers, spacings and evaluations", (
        Paragraph(_advice(study)),
        Figures((*panels, charts.against_time(study)), caption),
        front,
        Paragraph((f"Marked: the fewest evaluations that are no further than the full chain, but for {MARGIN:.0%} and "
                   f"{SIGMAS:g} standard errors of the difference on the same noise. A plan is on the front if none "
                   "with as few evaluations is as near; neighbours there may differ by less than can be told. Times "
                   "are medians over batches.",), small=True),
    ))  # fmt: skip


def trial_row(trial: Trial) -> tuple[Inline, ...]:
    """One line of a table of plans."""
    name = f"{trial.solver}, {trial.spacing}"
    return (name, str(trial.nfe), with_error(trial.distance, trial.error), words.number(trial.seconds * 1e3))


def _how(found: Evaluation) -> Section:
    rows = tuple(words.flat(found.about))
    return Section("how", "How it was measured", (Table(("", "value"), rows),))


def with_error(value: float, error: float) -> str:
    """`0.328 ± 0.021`, with as many decimals as the error has two digits."""
    if not error or error != error or error == float("inf"):
        return words.number(value)
    decimals = max(0, 1 - _magnitude(error))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def _magnitude(value: float) -> int:
    return int(f"{value:.1e}".partition("e")[2])


def lines(found: Evaluation) -> Sequence[str]:
    """The summary as plain text, for a terminal."""
    return ["".join(part if isinstance(part, str) else part.text for part in line) for line in summary(found)]
