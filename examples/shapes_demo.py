"""From words to pictures: train on captioned shapes, export, draw what prompts say, and count how often it is right.

Each stage is one of the package's own commands, printed as you would type it; `--bundle shapes` takes the model that
comes with the package instead of training one. Some combinations of colour and shape are kept out of training, and the
table has a line for prompts that ask for them. The result is a folder with `shapes.png`, and `report.md` about it all.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ddpm_deploy import Sampler
from ddpm_deploy.bundle import default_bundle, read_bundle, write_bundle
from ddpm_deploy.bundle.manifest import TORCH
from ddpm_deploy.cli import main as ddpm_deploy
from ddpm_deploy.images import grid
from ddpm_deploy.shapes.caption import captions
from ddpm_deploy.shapes.judge import TEST_COUNT, SceneJudge, Verdict
from ddpm_deploy.shapes.scene import HELD_OUT, draw_scenes

BATCH_SIZE = 50
PRESET = "shapes"
PROMPT_SEED = 7  # of scenes to ask for: not those of the training
SPLITS = {"training": "seen in training", "held-out": "held out"}
LICENCE = "Apache-2.0"
SHOWN = (
    "a red circle left of a blue square",
    "a green triangle above a red square",
    "a white cross below a yellow circle",
    "a purple square to the right of a green circle",
    "a blue circle",
    "a red triangle",
    "a yellow square above a blue circle",
    "a green cross left of a red triangle",
)
EACH = 4


@dataclass(frozen=True)
class Result:
    """How the pictures of one kind of prompts were judged. seconds: for all of them."""

    guidance: float
    prompts: str
    count: int
    verdict: Verdict
    seconds: float


def main() -> None:
    args = parse()
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    bundle = args.bundle or train(out, args.preset or PRESET, args.steps, args.threads)
    command("sample", bundle, "--prompt", SHOWN[1], "--guidance", "4", "--out", out / "prompt.png", "--num", 8,
            "--threads", args.threads)  # fmt: skip

    print("\njudging pictures by a classifier of rendered ones")
    judge = SceneJudge()
    with Sampler.load(bundle, threads=args.threads) as sampler:
        name = sampler.manifest.model.name
        results = list(measure(sampler, judge, args.num, args.guidance))
        draw(sampler, max(args.guidance), out / "shapes.png")
    report = render(name, results, judge, args.threads)
    (out / "report.md").write_text(report)
    print(report)
    print(f"written to {out}: shapes.png, prompt.png, report.md")
    if args.install:
        install(Path(bundle), args.install)
        print(f"written to {args.install}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/shapes"), help="folder for everything")
    parser.add_argument("--bundle", help="a bundle to judge instead of training one; 'shapes' is the package's own")
    parser.add_argument("--preset", help=f"preset of the trainer; default: {PRESET}")
    parser.add_argument("--num", type=int, default=500, help="prompts of each kind")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0, 4.0], help="weights of guidance")
    parser.add_argument("--steps", type=int, help="of training; default: the preset's")
    parser.add_argument("--threads", type=int, default=2, help="of torch and of the runtime")
    parser.add_argument("--install", nargs="?", const=default_bundle("shapes"), type=Path, metavar="FOLDER",
                        help="put the bundle there; without a folder: into the package, as its own")  # fmt: skip
    args = parser.parse_args()
    for name in ("preset", "steps"):
        if args.bundle is not None and getattr(args, name) is not None:
            parser.error(f"--{name}: is of the training, which --bundle takes the place of; leave one of them out")
    return args


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the paragraphs of the description and shows defaults."""


def command(*words: object) -> None:
    """Run one of the package's commands here, and say how to type it."""
    line = [str(word) for word in words]
    print(f"\n$ ddpm-deploy {' '.join(repr(word) if ' ' in word else word for word in line)}", flush=True)
    status = ddpm_deploy(line)
    if status:
        raise SystemExit(status)


def train(out: Path, preset: str, steps: int | None, threads: int) -> Path:
    """Train and export; returns the bundle, which is kept small: it has no `sampler` graph."""
    run, bundle = out / "run", out / "bundle"
    shutil.rmtree(run, ignore_errors=True)
    shorter = () if steps is None else ("--steps", steps)
    command("train", "--preset", preset, *shorter, "--out", run, "--threads", threads)
    command("export", run, "--out", bundle, "--name", "shapes", "--licence", LICENCE, "--graph", "denoiser")
    return bundle


def measure(sampler: Sampler, judge: SceneJudge, num: int, weights: list[float]) -> Iterator[Result]:
    """Prompts in all wordings, one picture for each, through the sampler's runtime."""
    indices = np.arange(num)
    for split, prompts in SPLITS.items():
        scenes = draw_scenes(PROMPT_SEED, indices, split)
        texts = captions(scenes, PROMPT_SEED, indices)
        for weight in weights:
            began = time.perf_counter()
            pictures = sampler.sample(num, prompt=texts, guidance=weight, batch_size=BATCH_SIZE, progress=True)
            seconds = time.perf_counter() - began
            yield Result(weight, prompts, num, judge.judge(pictures, scenes), seconds)


def draw(sampler: Sampler, guidance: float, path: Path) -> None:
    """A few pictures of each prompt, with the prompt above them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    texts = [text for text in SHOWN for _ in range(EACH)]
    pictures = sampler.sample(len(texts), prompt=texts, guidance=guidance, batch_size=BATCH_SIZE)
    figure, panels = pyplot.subplots(4, 2, figsize=(10.5, 7.2), layout="constrained")
    for i, (axes, text) in enumerate(zip(panels.flat, SHOWN, strict=True)):
        axes.imshow(np.asarray(grid(pictures[i * EACH : (i + 1) * EACH], columns=EACH, scale=4)))
        axes.set_title(text, fontsize=11)
        axes.axis("off")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def render(name: str, results: list[Result], judge: SceneJudge, threads: int) -> str:
    """The report; every figure in it was measured in this run."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("ddpm-deploy", "onnxruntime", "numpy"))
    rows = [("rendered pictures", "", TEST_COUNT, judge.real, ""), *(
        (r.prompts, f"{r.guidance:g}", r.count, r.verdict, f"{r.seconds / r.count * 1e3:.0f}") for r in results
    )]  # fmt: skip
    table = "\n".join(
        f"| {prompts} | {guidance} | {count} | {v.relation:.1%} | {v.colour:.1%} | {v.shape:.1%} | {v.attributes:.1%} "
        f"| {v.whole:.1%} | {milliseconds} |"
        for prompts, guidance, count, v, milliseconds in rows
    )
    held_out = ", ".join(f"{colour} {shape}" for colour, shape in HELD_OUT)
    return f"""# {name}: what was asked for, and what was drawn

{packages}; Python {platform.python_version()}, {platform.machine()}, {threads} threads.

| prompts | guidance | pictures | relation | colour | shape | all attributes | whole picture | ms each |
|---|---|---|---|---|---|---|---|---|
{table}

Drawn through ONNX Runtime with the bundle's default plan, in batches of {BATCH_SIZE}. The judge is a small network
trained on rendered pictures of every combination; its own errors are in the first line. A prompt asks for one shape or
for two and how they lie, in varied wordings. Held out, so that the model never saw them: {held_out};
each prompt of those lines asks for at least one. "All attributes" counts relation, colours and shapes one by one;
"whole picture" counts the pictures with nothing wrong.

![pictures of some prompts](shapes.png)
"""


def install(path: Path, folder: Path) -> None:
    """Copy it without the weights for torch: every runtime reads the graph."""
    bundle = read_bundle(path)
    files = tuple(file for file in bundle.manifest.files if file.target != TORCH)
    slim = replace(bundle.manifest, network=None, files=files)
    write_bundle(folder, slim, {file.path: bundle.open_bytes(file) for file in slim.all_files})


if __name__ == "__main__":
    main()
