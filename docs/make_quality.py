"""Fill docs/quality.md with the figures and plots of evaluations: `python docs/make_quality.py [FOLDER]`.

`make quality` and `make plans` run the evaluations first. FOLDER holds `digits/`, `shapes/` and `study/`, as
`ddpm-deploy evaluate --out` wrote them, and `plans/`, as `docs/tuned_plans.py` did. What stands between `<!-- NAME -->`
and `<!-- end -->` in the page is replaced; where figures are missing it is left as it was, and that is said.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from figure_style import BLUE, FAINT, GREEN, INK, ORANGE, PURPLE, RED, STYLE, WIDTH, save
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from ddpm_deploy.bench.report.document import Code, Table
from ddpm_deploy.bench.report.markdown import table_to_markdown
from ddpm_deploy.evaluate.figures import Figures
from ddpm_deploy.evaluate.pareto import Trial, pareto_front
from ddpm_deploy.evaluate.record import Study
from ddpm_deploy.evaluate.sections import REAL, SAMPLE_COLUMNS, figures_row, trial_row, with_error
from ddpm_deploy.evaluate.study import FULL, TUNED

DOCS = Path(__file__).parent
PAGE, IMAGES = DOCS / "quality.md", DOCS / "img"
COLOURS = {"ddpm": RED, "ddim": ORANGE, "dpmpp_2m": GREEN, "unipc": BLUE}
MARKS = {"trailing": "o", "quadratic": "s", "logsnr": "^", TUNED: "*"}
BOUND_PICTURE = "![The terms of the bound over t: most bits are spent at small t](img/quality_bound.png)"
STUDY_PICTURE = "![Distance against evaluations and measured time, with the Pareto front](img/quality_study.png)"
GUIDED_PICTURE = (
    "![What was asked for is drawn more often with guidance, at a price in distance](img/quality_guidance.png)"
)
Json = Mapping[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/quality"))
    folder = parser.parse_args().folder
    plt.rcParams.update(STYLE)
    text = PAGE.read_text(encoding="utf-8")
    for write, paths in WRITERS.items():
        files = [folder / path for path in paths]
        missing = [file for file in files if not file.exists()]
        if missing:
            print(f"left as it was: {write.__name__}, as there is no {missing[0]}")
            continue
        for name, block in write(*(json.loads(file.read_text(encoding="utf-8")) for file in files)).items():
            text = filled(text, name, block)
    PAGE.write_text(text, encoding="utf-8")


def filled(text: str, name: str, block: str) -> str:
    """The page with one block replaced."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"{PAGE}: has no <!-- {name} --> ... <!-- end -->")
    return pattern.sub(lambda match: f"{match[1]}\n{block}\n{match[2]}", text)


# -- blocks of the page, by name --------------------------------------------------------------------------------------


def digits(found: Json) -> dict[str, str]:
    save(bound_figure(found), IMAGES / "quality_bound.png")
    features = f"Features: {found['about']['features']}. {found['about']['threads']} threads."
    return {
        "bits": f"{table_to_markdown(bits_table(found['runtimes']))}\n\n{BOUND_PICTURE}",
        "samples": f"{table_to_markdown(samples_table(found))}\n\n{features}",
    }


def shapes(found: Json) -> dict[str, str]:
    (runtime, *_), about = found["runtimes"], found["about"]
    bits = runtime["bits_per_dim"]
    told = (
        f"{with_error(bits['value'], bits['standard_error'])} bits/dim on {bits['samples']} scenes, by the bound "
        f"respaced to {about['bound']} steps. Features: {about['features']}."
    )
    return {"shapes": f"{table_to_markdown(samples_table(found))}\n\n{told}"}


def guidance(digit: Json, shape: Json) -> dict[str, str]:
    save(guidance_figure(digit, shape), IMAGES / "quality_guidance.png")
    tables = [f"{name}:\n\n{table_to_markdown(guided_table(found))}" for name, found in
              (("The digits, by class", digit), ("The shapes, by prompt", shape))]  # fmt: skip
    return {"guidance": "\n\n".join([*tables, GUIDED_PICTURE])}


def solvers(found: Json) -> dict[str, str]:
    study = study_of(found)
    save(study_figure(study), IMAGES / "quality_study.png")
    return {"front": f"{STUDY_PICTURE}\n\n{table_to_markdown(front_table(study))}"}


def tuned_digits(found: Json) -> dict[str, str]:
    return {"tuned digits": contests(found)}


def tuned_shapes(found: Json) -> dict[str, str]:
    return {"tuned shapes": contests(found)}


WRITERS: dict[Callable[..., dict[str, str]], tuple[str, ...]] = {
    digits: ("digits/evaluation.json",),
    shapes: ("shapes/evaluation.json",),
    guidance: ("digits/evaluation.json", "shapes/evaluation.json"),
    solvers: ("study/evaluation.json",),
    tuned_digits: ("plans/digits.json",),
    tuned_shapes: ("plans/shapes.json",),
}


# -- tables -----------------------------------------------------------------------------------------------------------


def bits_table(runtimes: Sequence[Json]) -> Table:
    rows = []
    for runtime in runtimes:
        bits, apart = runtime["bits_per_dim"], runtime["bits_per_dim_difference"]
        parts = [f"{part:.2g}" if part < 0.01 else f"{part:.4f}" for part in bits["parts"].values()]
        differs = "" if apart is None else f"{apart['value']:+.1e} ± {apart['standard_error']:.0e}"
        rows.append((runtime["runtime"], with_error(bits["value"], bits["standard_error"]), *parts, differs))
    names = (f"{name}>" for name in runtimes[0]["bits_per_dim"]["parts"])
    return Table(("", "bits/dim>", *names, "more than the first, same noise>"), tuple(rows))


def samples_table(found: Json) -> Table:
    named = [(REAL, found["real"]), *((runtime["runtime"], runtime["samples"]) for runtime in found["runtimes"])]
    return Table(SAMPLE_COLUMNS, tuple(figures_row(name, Figures(**figures)) for name, figures in named))


def guided_table(found: Json) -> Table:
    """A line a weight; marked: where most of what was asked for is drawn."""
    rows = [
        (f"{row['guidance']:g}", f"{row['class_accuracy']:.1%}", with_error(row["frechet"], row["frechet_error"]),
         with_error(row["kernel"] * 1e3, row["kernel_error"] * 1e3), f"{row['precision']:.2f}", f"{row['recall']:.2f}")
        for row in found["guided"]
    ]  # fmt: skip
    best = max(range(len(rows)), key=lambda k: found["guided"][k]["class_accuracy"])
    columns = ("guidance>", "as asked>", "Fréchet>", "kernel ×10³>", "precision>", "recall>")
    return Table(columns, tuple(rows), frozenset({best}))


def front_table(study: Study) -> Table:
    rows = [trial_row(trial) for trial in (*study.front, study.reference)]
    marked = frozenset({study.front.index(study.recommended)} if study.recommended in study.front else ())
    return Table(("on the Pareto front; last the full chain", "evaluations>", "Fréchet>", "ms a sample>"),
                 tuple(rows), marked)  # fmt: skip


def contests(found: Json) -> str:
    """For each solver and number of evaluations the tuned plan beside the best of the hand-made spacings."""
    rows, wins = [], {"near": 0, "real": 0}
    for contest in found["contests"]:
        cells = []
        for kind in wins:
            it = contest[kind]
            wins[kind] += (it["best"] - it["tuned"]) > SIGMAS * it["error"]
            cells += [f"{it['tuned']:.3f}", f"{it['best']:.3f} {it['rival']}", _less(it)]
        steps = ", ".join(f"{t:g}" for t in contest["timesteps"])
        rows.append((contest["solver"], str(contest["nfe"]), *cells, Code(steps)))
    columns = ("", "evaluations>", "tuned: to the fine solution>", "best hand-made>", "less by>",
               "tuned: to real ones>", "best hand-made>", "less by>", "tuned timesteps")  # fmt: skip
    total = len(rows)
    told = (
        f"Less by more than {SIGMAS:g} standard errors: {wins['near']} of {total} to the fine solution, "
        f"{wins['real']} of {total} to real ones. Guidance {found['guidance']:g}; {found['near']} samples against the "
        f"fine solution, {found['samples']} against real ones; {found['taught']} trajectories to tune with."
    )
    return f"{table_to_markdown(Table(columns, tuple(rows)))}\n\n{told}"


SIGMAS = 2.0


def _less(it: Json) -> str:
    return f"{it['best'] - it['tuned']:+.3f} ± {it['error']:.3f}"


def study_of(found: Json) -> Study:
    trials = [Trial(**{**trial, "timesteps": _tuple(trial["timesteps"])}) for trial in found["study"]["trials"]]
    return Study(tuple(trials))


def _tuple(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)


# -- pictures ---------------------------------------------------------------------------------------------------------


def bound_figure(found: Json) -> Figure:
    """Where the bits are spent, and what they sum to from the noise down to each t."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.9))
    bits = found["runtimes"][0]["bits_per_dim"]
    t, terms = np.array(bits["t"]) + 1, np.array(bits["terms"])
    left.loglog(t[:-1], terms[:-1], color=BLUE)
    left.loglog(t[-1:], terms[-1:], "o", color=ORANGE)
    left.annotate("$L_0$", (t[-1], terms[-1]), (9, -3), textcoords="offset points", color=INK)
    left.set(title="each term, bits/dim", xlabel="t + 1")
    right.semilogx(t, terms.cumsum(), color=BLUE)
    right.set(title="summed from the noise down to t, bits/dim", xlabel="t + 1")
    for axes in (left, right):
        axes.grid(True)
    return figure


def guidance_figure(digit: Json, shape: Json) -> Figure:
    """What is drawn as asked, and the distance and the variety that it costs, by weight from 1 on."""
    figure, panels = plt.subplots(1, 3, figsize=(WIDTH, 2.9))
    for name, colour, found in (("digits, by class", BLUE, digit), ("shapes, by prompt", ORANGE, shape)):
        rows = [row for row in found["guided"] if row["guidance"] >= 1]
        lines = (
            [100 * row["class_accuracy"] for row in rows],
            [row["frechet"] / found["real"]["frechet"] for row in rows],
            [row["recall"] for row in rows],
        )
        for axes, values in zip(panels, lines, strict=True):
            axes.plot([row["guidance"] for row in rows], values, color=colour, marker="o", ms=4, label=name)
    titles = ("drawn as asked, %", "Fréchet distance, of real ones' own", "recall: part of the variety")
    for axes, title in zip(panels, titles, strict=True):
        axes.set(title=title, xlabel="guidance")
        axes.grid(True)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def study_figure(study: Study) -> Figure:
    """Distance against evaluations and against time, with the front."""
    figure, panels = plt.subplots(1, 2, figsize=(WIDTH, 4.1), sharey=True)
    ways = [
        ("evaluations", lambda trial: float(trial.nfe)),
        ("measured ms a sample", lambda trial: trial.seconds * 1e3),
    ]
    for axes, (name, place) in zip(panels, ways, strict=True):
        for trial in study.trials[1:]:
            mark, size = MARKS.get(trial.spacing, "."), 75 if trial.spacing == TUNED else 24
            colour = COLOURS.get(trial.solver, PURPLE)
            axes.scatter(place(trial), trial.distance, size, colour, marker=mark, alpha=0.85, linewidths=0)
        front = pareto_front(study.trials[1:])
        axes.plot([place(t) for t in front], [t.distance for t in front], color=FAINT, lw=1, zorder=0)
        axes.axhline(study.reference.distance, color=FAINT, lw=0.8, ls="--")
        axes.set(xscale="log", yscale="log", xlabel=name)
        plain(axes)
    _ring(panels, study.recommended, ways)
    panels[0].set_ylabel("Fréchet distance to real digits held out")
    names = dict.fromkeys(trial.solver for trial in study.trials[1:])
    handles = [plt.Line2D([], [], color=COLOURS.get(name, PURPLE), marker="o", ls="", label=name) for name in names]
    handles += [plt.Line2D([], [], color=FAINT, marker=mark, ls="", label=name) for name, mark in MARKS.items()]
    handles += [plt.Line2D([], [], color=FAINT, ls="--", label=f"ddpm, {FULL} {study.reference.nfe} evaluations")]
    handles += [plt.Line2D([], [], color=INK, marker="o", mfc="none", ms=9, ls="", label="recommended")]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8)
    return figure


def _ring(panels: Sequence[Axes], trial: Trial, ways: Sequence[tuple[str, Callable[[Trial], float]]]) -> None:
    for axes, (_, place) in zip(panels, ways, strict=True):
        axes.scatter(place(trial), trial.distance, 170, "none", edgecolors=INK, linewidths=1)


def plain(axes: Axes) -> None:
    """Numbers as they are written, at a few places of a logarithmic axis."""
    across, up = (0.25, 0.5, 1, 2, 4, 6, 8, 12, 25, 50), (0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1, 2, 4)
    for axis, places in ((axes.xaxis, across), (axes.yaxis, up)):
        low, high = axis.get_view_interval()
        axis.set_ticks([place for place in places if low <= place <= high])
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    axes.grid(True)


if __name__ == "__main__":
    main()
