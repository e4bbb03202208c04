"""The whole way on real data: train on handwritten digits, export to ONNX, prove parity, sample, judge, report.

`make demo` runs this. Each stage is one of the package's own commands, printed as you would type it. The result is
a folder with `samples.png`, `by_class.png`, `denoising.gif`, `parity.png`, `parity.json`, the bundle, and `report.md`
about it all.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ddpm_deploy import Sampler
from ddpm_deploy.bundle import default_bundle
from ddpm_deploy.cli import main as ddpm_deploy
from ddpm_deploy.evaluate.digits import DigitJudge, Verdict
from ddpm_deploy.images import grid
from ddpm_deploy.train import digits_arrays

THREADS = 2
BATCH_SIZE = 100
SHOWN = 16
LABELS = tuple(range(10))
WEIGHTS = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0)  # of guidance
SOLVERS = (("ddpm", None), ("ddim", 50), ("ddim", 12), ("dpmpp_2m", 12), ("unipc", 12), ("unipc", 6))
LICENCE = "Apache-2.0"


@dataclass(frozen=True)
class Result:
    """One solver's pictures (n, 1, 8, 8), how they were judged, and how long they took."""

    solver: str
    nfe: int
    samples: np.ndarray
    verdict: Verdict
    seconds: float

    @property
    def label(self) -> str:
        return f"{self.solver}, {self.nfe} evaluations"


@dataclass(frozen=True)
class Guided:
    """Pictures (n, 1, 8, 8) of all classes in turn at one weight, and how many are taken for what they should be."""

    weight: float
    samples: np.ndarray
    verdict: Verdict
    accuracy: float


def main() -> None:
    args = parse()
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    run, bundle = out / "run", out / "bundle"
    shutil.rmtree(run, ignore_errors=True)

    began = time.perf_counter()
    command("train", "--preset", args.preset, "--labels", "--out", run, "--threads", THREADS)
    trained = time.perf_counter() - began
    command("export", run, "--out", bundle, "--name", "digits", "--licence", LICENCE)
    command("parity", bundle, "--solver", "ddpm", "--num", 2, "--out", out, "--threads", THREADS)
    command("sample", bundle, "--solver", "ddpm", "--num", SHOWN, "--label", ",".join(map(str, LABELS)),
            "--out", out / "digits.png", "--animate", out / "denoising.gif", "--threads", THREADS)  # fmt: skip

    print("\njudging pictures of each solver by a classifier of real digits")
    judge = DigitJudge()
    with Sampler.load(bundle, threads=THREADS) as sampler:
        results = [
            measure(sampler, judge, solver, steps, args.num_chain if solver == "ddpm" else args.num)
            for solver, steps in SOLVERS
        ]
        guided = [guide(sampler, judge, weight, args.num) for weight in WEIGHTS]
    draw(results, out / "samples.png")
    draw_classes(guided, out / "by_class.png")
    report = render(results, guided, judge, trained)
    (out / "report.md").write_text(report)
    print(report)
    print(f"written to {out}: samples.png, by_class.png, denoising.gif, parity.png, report.md, bundle/")
    if args.install:
        shutil.rmtree(default_bundle(), ignore_errors=True)
        shutil.copytree(bundle, default_bundle())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for everything")
    parser.add_argument("--preset", default="digits", help="preset of the trainer")
    parser.add_argument("--num", type=int, default=500, help="pictures of each fast solver to judge")
    parser.add_argument("--num-chain", type=int, default=100, help="pictures of the full DDPM chain to judge")
    parser.add_argument("--install", action="store_true", help="put the bundle into the package, as its digits model")
    return parser.parse_args()


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the paragraphs of the description and shows defaults."""


def command(*words: object) -> None:
    """Run one of the package's commands here, and say how to type it."""
    line = [str(word) for word in words]
    print(f"\n$ ddpm-deploy {' '.join(line)}", flush=True)
    status = ddpm_deploy(line)
    if status:
        raise SystemExit(status)


def measure(sampler: Sampler, judge: DigitJudge, solver: str, steps: int | None, num: int) -> Result:
    """Draw all classes in turn from seed 0, so that every solver starts from the same noise."""
    plan = sampler.plan(solver, steps)
    began = time.perf_counter()
    samples = sampler.sample(num, plan=plan, seed=0, condition=classes(num), batch_size=BATCH_SIZE, progress=True)
    seconds = time.perf_counter() - began
    return Result(solver, plan.nfe, samples, judge.judge(samples), seconds)


def guide(sampler: Sampler, judge: DigitJudge, weight: float, num: int) -> Guided:
    """The same noise at each weight, by the bundle's default solver."""
    condition = classes(num)
    samples = sampler.sample(num, seed=0, condition=condition, guidance=weight, batch_size=BATCH_SIZE, progress=True)
    accuracy = float(np.mean(judge.classify(samples) == condition["labels"]))
    return Guided(weight, samples, judge.judge(samples), accuracy)


def classes(num: int) -> dict[str, np.ndarray]:
    return {"labels": np.resize(LABELS, num)}


def draw(results: list[Result], path: Path) -> None:
    """One panel a solver; the same place is the same noise."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 3, figsize=(10.5, 7.4), layout="constrained")
    for axes, result in zip(panels.flat, results, strict=True):
        axes.imshow(np.asarray(grid(result.samples[:SHOWN], scale=16)), cmap="gray", interpolation="nearest")
        axes.set_title(result.label, fontsize=11)
        axes.axis("off")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def draw_classes(guided: list[Guided], path: Path) -> None:
    """A column a class, a row a weight, the same noise down each column."""
    samples = np.concatenate([result.samples[: len(LABELS)] for result in guided])
    grid(samples, columns=len(LABELS)).save(path)


def render(results: list[Result], guided: list[Guided], judge: DigitJudge, trained: float) -> str:
    """The report; every figure in it was measured in this run."""
    real = judge.real
    rows = [
        ("real digits, held out", "", len(digits_arrays(held_out=True)[0]), real, ""),
        *((r.solver, r.nfe, len(r.samples), r.verdict, f"{r.seconds / len(r.samples) * 1e3:.1f}") for r in results),
    ]
    packages = ", ".join(f"{name} {version(name)}" for name in ("ddpm-deploy", "torch", "onnxruntime", "numpy"))
    table = "\n".join(
        f"| {name} | {nfe} | {count} | {v.top_probability:.3f} | {min(v.shares):.1%} | {v.nearest_median:.2f} "
        f"| {v.nearest_least:.2f} | {milliseconds} |"
        for name, nfe, count, v, milliseconds in rows
    )
    best = max(guided, key=lambda result: result.accuracy)
    weights = ", ".join(f"{result.weight:g}" for result in guided)
    by_weight = "\n".join(
        f"| {g.weight:g} | {len(g.samples)} | {g.accuracy:.1%} | {g.verdict.top_probability:.3f} "
        f"| {g.verdict.nearest_median:.2f} | {g.verdict.nearest_least:.2f} |"
        for g in guided
    )
    return f"""# Digits, from training to pictures

{packages}; Python {platform.python_version()}, {platform.machine()}, {THREADS} threads. Training took {trained:.0f} s.

![samples of each solver](samples.png)

The same place in each panel starts from the same noise. All of them draw the ten digits in turn, without guidance.

| | evaluations | pictures | mean top probability | rarest digit | nearest real one: median | least | ms each |
|---|---|---|---|---|---|---|---|
{table}

Drawn through ONNX Runtime in batches of {BATCH_SIZE}. The judge is a small neural network
trained on the real training digits; it recognises {judge.accuracy:.1%} of the held-out ones. Distances to the nearest
training picture are Euclidean, in network range: a copy of it would be at 0.

## By class, with guidance

![a column a class, a row a weight of guidance](by_class.png)

A column for each digit asked for; the rows are guided with the weights {weights}, from the same noise. At 0 the label
is not heard, at 1 it is heard as it is, above 1 it is exaggerated.

| weight | pictures | taken for the digit asked for | mean top probability | nearest real one: median | least |
|---|---|---|---|---|---|
{by_weight}

The best weight here is {best.weight:g}.

![denoising](denoising.gif)

![parity](parity.png)

Error of each runtime against float32 torch over the full chain, one step at a time and along its own trajectory;
all figures are in [parity.json](parity.json).
"""


if __name__ == "__main__":
    main()
