"""`python -m ddpm_deploy.evaluate BUNDLE --data ...`: how good a model's samples are, on any runtime."""

from __future__ import annotations

import argparse
import json as json_module
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ddpm_deploy.backends import BACKENDS
from ddpm_deploy.bundle import read_bundle
from ddpm_deploy.cli import make_parser, require_writable, run_command, some_path, words
from ddpm_deploy.evaluate import study as studies
from ddpm_deploy.evaluate.api import FULL, Evaluator, Settings, StudyLists, open_samplers, plan_from
from ddpm_deploy.evaluate.data import MOST, open_data
from ddpm_deploy.evaluate.features import open_features
from ddpm_deploy.evaluate.pages import JSON, write_all
from ddpm_deploy.evaluate.record import Evaluation
from ddpm_deploy.evaluate.sections import lines
from ddpm_deploy.evaluate.state import State
from ddpm_deploy.solvers import SOLVERS
from ddpm_deploy.spacing import SPACINGS
from ddpm_deploy.tuning.defaults import check_defaults_of, write_defaults

NONE = "none"


def build_parser() -> argparse.ArgumentParser:
    """The command line of `evaluate`."""
    own = Settings()
    parser = make_parser("evaluate", "Measure how good a model is: bits/dim on real samples, distances of its own.")
    add = parser.add_argument
    add("bundle", help="bundle folder, lone .onnx file, or digits or shapes, the package's own")
    add("--data", required=True, metavar="SOURCE", help="digits, shapes, folder:PATH, cifar10:PATH or npz:FILE")
    add("--held-out", metavar="SOURCE", help="real samples never trained on; default: the source's own, or one in five")
    add("--most", type=int, default=MOST, help="real samples of each part")
    add(
        "--features",
        type=some_path,
        metavar="FILE",
        help=".onnx or TorchScript; default: those of a classifier trained here",
    )
    add("--backend", choices=BACKENDS, default="onnxruntime", help="runtime")
    add("--precision", default="fp32", help="a precision that the backend or the bundle has")
    add("--beside", type=words, default=(), metavar="A,B:bf16", help="other runtimes, compared on the same noise")
    add("--skip-unavailable", action="store_true", help="leave out those of --beside that this machine cannot run")
    add("--device", default="cpu", help="such as cpu or cuda:0")
    add("--threads", type=int, help="threads of one call; default: every CPU that the process may use")
    add("--bound", type=_bound, default=own.bound, metavar="N",
        help=f"steps of the chain whose bound is measured; {FULL}: all T; {NONE}: no bound")  # fmt: skip
    add("--bound-samples", type=int, default=own.bound_samples, help="real samples for it")
    add("--draws", type=int, default=own.draws, help="draws of noise for each of these, at each step")
    add("--num", type=int, default=own.samples, help="samples to draw")
    add("--solver", choices=SOLVERS, metavar="NAME", help=f"one of {', '.join(SOLVERS)}; default: the bundle's")
    add("--steps", type=int, help="1 to T; default: the bundle's, or T for ddpm")
    add("--spacing", choices=SPACINGS, metavar="NAME", help=f"one of {', '.join(SPACINGS)}; default: the bundle's")
    add("--plan", type=some_path, metavar="FILE", help="plan (.json or .npz) instead of solver, steps and spacing")
    add("--guidance", type=float, default=own.guidance, help="weight of the condition in what is drawn")
    add("--weights", type=_weights, default=(), metavar="W,W", help="weights of guidance to draw with as well")
    add("--guidance-interval", type=_interval, metavar="LOW,HIGH", help="timesteps at which the weight counts")
    add("--seed", type=int, default=own.seed, help="of all noise")
    add("--batch-size", type=int, default=own.batch_size, help="samples that share a call of the network")
    add("--study", action="store_true", help="also try solvers, spacings and evaluations against the full chain")
    add("--solvers", type=words, metavar="A,B", help=f"of the study; default: {','.join(studies.SOLVERS)}")
    add("--spacings", type=words, metavar="A,B",
        help=f"of the study, {studies.TUNED} among them; default: {','.join(studies.CHOSEN_SPACINGS)}")  # fmt: skip
    add("--nfes", type=_counts, metavar="N,N", help=f"of the study; default: {','.join(map(str, studies.NFES))}")
    add("--write-default", action="store_true", help="make what the study recommends the bundle's default plan")
    add("--out", type=some_path, metavar="DIR", help="write a report there, and go on from there when started again")
    add("--restart", action="store_true", help="discard what an earlier run left in --out")
    add("--digest", metavar="sha256:...", help="refuse any other bundle than this")
    add("--json", action="store_true", help="print everything measured as JSON")
    return parser


def run(
    *,
    bundle: str,
    data: str,
    held_out: str | None,
    most: int,
    features: Path | None,
    backend: str,
    precision: str,
    beside: Sequence[str],
    skip_unavailable: bool,
    device: str,
    threads: int | None,
    bound: int | str | None,
    bound_samples: int,
    draws: int,
    num: int,
    solver: str | None,
    steps: int | None,
    spacing: str | None,
    plan: Path | None,
    guidance: float,
    weights: tuple[float, ...],
    guidance_interval: tuple[float, float] | None,
    seed: int,
    batch_size: int,
    study: bool,
    solvers: Sequence[str] | None,
    spacings: Sequence[str] | None,
    nfes: Sequence[int] | None,
    write_default: bool,
    out: Path | None,
    restart: bool,
    digest: str | None,
    json: bool,
) -> None:
    """Measure, write and report; see `build_parser` for the arguments."""
    lists = _lists(study, solvers, spacings, nfes, write_default)
    settings = Settings(bound, bound_samples, draws, num, seed, batch_size, guidance, guidance_interval, weights)
    read = read_bundle(bundle, digest=digest)
    if out is not None:
        require_writable(out / JSON)
    if write_default:
        check_defaults_of(read)
    real = open_data(data, read.manifest, held_out, most)
    settings.check_guidance(real, read.manifest)
    left_out: dict[str, str] = {}
    with ExitStack() as stack:
        runtimes = [(backend, precision), *_runtimes(beside)]
        samplers = open_samplers(
            stack, read, runtimes, device, threads, partial(_leave_out, left_out) if skip_unavailable else None
        )
        chosen = plan_from(plan, next(iter(samplers.values())), solver, steps, spacing)
        evaluator = Evaluator(read, real, open_features(real, features), chosen, settings)
        state = State.open(out, evaluator.key, restart)
        bar = stack.enter_context(_bar(None if study else evaluator.work(len(samplers)), shown=not json))
        found = replace(evaluator.run(samplers, state, lists, bar.update), left_out=left_out)
    written = [] if out is None else [str(path) for path in write_all(found, out)]
    if write_default and found.study is not None:
        write_defaults(read, studies.as_defaults(found.study.recommended, read.manifest.defaults))
        written.append(str(read.root))
    print(json_module.dumps({**found.to_dict(), "written": written}) if json else _told(found, written))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_command(build_parser(), run, argv)


def _told(found: Evaluation, written: Sequence[str]) -> str:
    return "\n".join([*lines(found), *(f"written: {path}" for path in written)])


def _leave_out(left_out: dict[str, str], name: str, reason: str) -> None:
    print(f"left out: {name}: {reason}", file=sys.stderr, flush=True)
    left_out[name] = reason


def _lists(
    study: bool,
    solvers: Sequence[str] | None,
    spacings: Sequence[str] | None,
    nfes: Sequence[int] | None,
    write_default: bool,
) -> StudyLists | None:
    if not study:
        flags = {"--solvers": solvers, "--spacings": spacings, "--nfes": nfes, "--write-default": write_default or None}
        for flag, value in flags.items():
            if value is not None:
                raise ValueError(f"{flag}: is of the study; give --study too")
        return None
    own = StudyLists()
    lists = StudyLists(solvers or own.solvers, spacings or own.spacings, nfes or own.nfes)
    studies.check_lists(lists.solvers, lists.spacings, lists.nfes)
    return lists


def _runtimes(names: Sequence[str]) -> list[tuple[str, str]]:
    pairs = [(name, precision or "fp32") for name, _, precision in (item.partition(":") for item in names)]
    for name, _ in pairs:
        if name not in BACKENDS:
            raise ValueError(f"--beside: got {name!r}, expected names of {', '.join(BACKENDS)}, separated by commas")
    return pairs


def _bound(text: str) -> int | str | None:
    if text in (FULL, NONE):
        return FULL if text == FULL else None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number of steps, {FULL} or {NONE}")
    return int(text)


def _interval(text: str) -> tuple[float, float]:
    low, _, high = text.partition(",")
    try:
        return float(low), float(high)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected LOW,HIGH in timesteps, such as 100,800") from None


def _weights(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in words(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected weights of guidance, such as 1,2,4") from None


def _counts(text: str) -> tuple[int, ...]:
    parts = words(text)
    if not parts or not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected numbers of evaluations, such as 4,8,20")
    return tuple(int(part) for part in parts)


def _bar(total: int | None, shown: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc="evaluate", unit="eval", unit_scale=True, leave=False, file=sys.stderr,
                disable=not shown or not sys.stderr.isatty())  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
