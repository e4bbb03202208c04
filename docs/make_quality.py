"""Fill docs/quality.md with the figures and plots of evaluations: `python docs/make_quality.py [FOLDER]`.

`make quality` runs the evaluations first. FOLDER holds `digits/` and `study/`, as `ddpm-deploy evaluate --out` wrote
them. What stands between `<!-- NAME -->` and `<!-- end -->` in the page is replaced.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from figure_style import BLUE, FAINT, GREEN, ORANGE, PURPLE, RED, STYLE, WIDTH, save
from matplotlib.figure import Figure

from ddpm_deploy.bench.report.document import Code, Table
from ddpm_deploy.bench.report.markdown import table_to_markdown
from ddpm_deploy.evaluate.figures import Figures
from ddpm_deploy.evaluate.pareto import Trial, pareto_front
from ddpm_deploy.evaluate.record import Study
from ddpm_deploy.evaluate.sections import REAL, SAMPLE_COLUMNS, figures_row, trial_row, with_error
from ddpm_deploy.evaluate.study import FULL, TUNED

DOCS = Path(__file__).parent
PAGE = DOCS / "quality.md"
COLOURS = {"ddpm": RED, "ddim": ORANGE, "dpmpp_2m": GREEN, "unipc": BLUE}
MARKS = {"trailing": "o", "quadratic": "s", "logsnr": "^", TUNED: "*"}
BOUND_PICTURE = "![The terms of the bound over t: most bits are spent at small t](img/quality_bound.png)"
STUDY_PICTURE = "![Distance against evaluations and measured time, with the Pareto front](img/quality_study.png)"
COMPARED = (5, 6, 7, 8)  # evaluations, where the timesteps matter most
Json = Mapping[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/quality"))
    folder = parser.parse_args().folder
    digits, tried = (json.loads((folder / name / "evaluation.json").read_text()) for name in ("digits", "study"))
    study = study_of(tried)
    text = PAGE.read_text(encoding="utf-8")
    for name, block in blocks(digits, study).items():
        text = filled(text, name, block)
    PAGE.write_text(text, encoding="utf-8")
    plt.rcParams.update(STYLE)
    save(bound_figure(digits), DOCS / "img" / "quality_bound.png")
    save(study_figure(study), DOCS / "img" / "quality_study.png")


def blocks(digits: Json, study: Study) -> dict[str, str]:
    """What stands between the marks of the page, by name."""
    return {
        "bits": f"{table_to_markdown(bits_table(digits['runtimes']))}\n\n{BOUND_PICTURE}",
        "samples": f"{table_to_markdown(samples_table(digits))}\n\nFeatures: {digits['about']['features']}.",
        "front": f"{STUDY_PICTURE}\n\n{table_to_markdown(front_table(study))}",
        "tuned": table_to_markdown(tuned_table(study.trials)),
    }


def filled(text: str, name: str, block: str) -> str:
    """The page with one block replaced."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"{PAGE}: has no <!-- {name} --> ... <!-- end -->")
    return pattern.sub(lambda match: f"{match[1]}\n{block}\n{match[2]}", text)


def study_of(found: Json) -> Study:
    trials = [Trial(**{**trial, "timesteps": _tuple(trial["timesteps"])}) for trial in found["study"]["trials"]]
    return Study(tuple(trials))


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


def front_table(study: Study) -> Table:
    rows = [trial_row(trial) for trial in study.front]
    marked = frozenset({study.front.index(study.recommended)} if study.recommended in study.front else ())
    return Table(("on the Pareto front", "evaluations>", "Fréchet>", "ms a sample>"), tuple(rows), marked)


def tuned_table(trials: Sequence[Trial]) -> Table:
    """For each solver and number of evaluations the tuned plan beside the best of the hand-made spacings."""
    rows = []
    for trial in trials:
        if trial.spacing != TUNED or trial.nfe not in COMPARED:
            continue
        rivals = [t for t in trials if (t.solver, t.nfe) == (trial.solver, trial.nfe) and t.spacing != TUNED]
        best = min(rivals, key=lambda t: t.distance)
        steps = ", ".join(f"{t:g}" for t in trial.timesteps or ())
        rows.append((
            trial.solver, str(trial.nfe), with_error(trial.distance, trial.error),
            with_error(best.distance, best.error), best.spacing, f"{trial.distance / best.distance:.2f}", Code(steps),
        ))  # fmt: skip
    columns = ("", "evaluations>", "tuned>", "best hand-made>", "which", "ratio>", "tuned timesteps")
    return Table(columns, tuple(rows))


def bound_figure(found: Json) -> Figure:
    """Where the bits are spent, and what is left of them down to each t."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.7))
    bits = found["runtimes"][0]["bits_per_dim"]
    t, terms = np.array(bits["t"]), np.array(bits["terms"])
    left.semilogy(t[terms > 0], terms[terms > 0], color=BLUE)
    left.set(title="each term, bits/dim", xlabel="t")
    right.plot(t, terms.cumsum(), color=BLUE)
    right.set(title="summed from the noise down to t, bits/dim", xlabel="t")
    return figure


def study_figure(study: Study) -> Figure:
    """Distance against evaluations and against time, with the front."""
    figure, panels = plt.subplots(1, 2, figsize=(WIDTH, 3.9), sharey=True)
    ways = [("evaluations", lambda trial: float(trial.nfe)), ("ms a sample", lambda trial: trial.seconds * 1e3)]
    for axes, (name, place) in zip(panels, ways, strict=True):
        for trial in study.trials:
            mark, size = MARKS.get(trial.spacing, "."), 70 if trial.spacing == TUNED else 22
            colour = COLOURS.get(trial.solver, PURPLE)
            axes.scatter(place(trial), trial.distance, size, colour, marker=mark, alpha=0.8, linewidths=0)
        front = pareto_front(study.trials)
        axes.plot([place(t) for t in front], [t.distance for t in front], color=FAINT, lw=1, zorder=0)
        axes.axhline(study.reference.distance, color=FAINT, lw=0.8, ls="--")
        axes.set(xscale="log", yscale="log", xlabel=name)
    panels[0].set(title="Fréchet distance to real digits held out")
    solvers = [plt.Line2D([], [], color=colour, marker="o", ls="", label=name) for name, colour in COLOURS.items()]
    marks = [plt.Line2D([], [], color=FAINT, marker=mark, ls="", label=name) for name, mark in MARKS.items()]
    line = plt.Line2D([], [], color=FAINT, ls="--", label=f"ddpm, {FULL} steps")
    figure.legend(handles=[*solvers, *marks, line], loc="outside lower center", ncols=5, fontsize=8)
    return figure


def _tuple(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)


if __name__ == "__main__":
    main()
