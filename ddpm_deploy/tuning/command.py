"""`python -m ddpm_deploy.tune --plan --nfe 6`: timesteps for few evaluations, chosen for one model."""

from __future__ import annotations

import argparse
import json as json_module
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ddpm_deploy.backends import BACKENDS
from ddpm_deploy.bundle import Defaults, default_bundle, read_bundle
from ddpm_deploy.cli import PACKAGED, make_parser, require_writable, run_command, some_path
from ddpm_deploy.encoder import PROMPT
from ddpm_deploy.sampler import Sampler
from ddpm_deploy.solvers import SOLVERS
from ddpm_deploy.tuning.defaults import check_defaults_of, write_defaults
from ddpm_deploy.tuning.plan import SAMPLES, SEARCHED, TunedPlan, tune_plan

FLAG = "--plan"
ENDINGS = (".json", ".npz")


def build_parser() -> argparse.ArgumentParser:
    """The command line of `tune --plan`."""
    parser = make_parser("tune", "Choose the timesteps of a plan that suit a model, by its own fine trajectories.")
    add = parser.add_argument
    add("bundle", nargs="?", help=f"bundle folder, or {PACKAGED}")
    add(FLAG, action="store_true", required=True, help="choose a plan; without it, `tune` chooses a backend")
    add("--nfe", type=int, required=True, help="evaluations of the network for one sample")
    add("--solver", choices=SOLVERS, metavar="NAME", help="a deterministic one; default: the bundle's")
    add("--guidance", type=float, default=1.0, help="the weight that the plan is meant for")
    add("--prompts", type=some_path, metavar="FILE", help="a text a line, taken in turn; for models that read text")
    add("--samples", type=int, default=SAMPLES, help="trajectories to be matched")
    add("--out", type=some_path, metavar="FILE", help="write the plan, .json or .npz, for `sample --plan FILE`")
    add("--write-default", action="store_true", help="make it the plan that the bundle draws with by default")
    add("--backend", choices=BACKENDS, default="onnxruntime", help="runtime")
    add("--precision", default="fp32", help="a precision that the backend or the bundle has")
    add("--device", default="cpu", help="such as cpu or cuda:0")
    add("--threads", type=int, help="threads of one call; default: every CPU that the process may use")
    add("--digest", metavar="sha256:...", help="refuse any other bundle than this")
    add("--json", action="store_true", help="print everything found as JSON")
    return parser


def run(
    *,
    bundle: str | None,
    plan: bool,
    nfe: int,
    solver: str | None,
    guidance: float,
    prompts: Path | None,
    samples: int,
    out: Path | None,
    write_default: bool,
    backend: str,
    precision: str,
    device: str,
    threads: int | None,
    digest: str | None,
    json: bool,
) -> None:
    """Choose, write and report; see `build_parser` for the arguments. plan: true, as it got here."""
    read = read_bundle(default_bundle() if bundle is None else bundle, digest=digest)
    if out is not None:
        if out.suffix not in ENDINGS:
            raise ValueError(f"--out: got {out}, expected a name ending in {' or '.join(ENDINGS)}")
        require_writable(out)
    if write_default:
        check_defaults_of(read)
    condition = None if prompts is None else {PROMPT: _texts(prompts, samples)}
    with (
        Sampler.load(read, backend=backend, precision=precision, device=device, threads=threads) as sampler,
        _bar(shown=not json) as bar,
    ):
        found = tune_plan(
            sampler, nfe, solver, samples=samples, guidance=guidance, condition=condition, tell=bar.update
        )
    if out is not None:
        found.plan.save(out)
    written: list[str] = [] if out is None else [str(out)]
    if write_default:
        own = read.manifest.defaults
        options = own.options if solver in (None, own.solver) else {}
        write_defaults(
            read, Defaults(solver or own.solver, len(found.timesteps), own.spacing, options, found.timesteps)
        )
        written.append(str(read.root))
    facts = {"solver": found.plan.solver, "nfe": nfe, **asdict(found), "written": written}
    del facts["plan"]
    print(json_module.dumps(facts) if json else render(found, written))


def render(found: TunedPlan, written: Sequence[str]) -> str:
    """The report for people."""
    best = found.errors[found.spacing or SEARCHED]
    rows = [(name, f"{error:.4f}", f"{error / best:.2f}x") for name, error in found.errors.items()]
    width = max(len(name) for name, *_ in rows)
    lines = [f"{name:<{width}}  {error}  {ratio:>6}" for name, error, ratio in rows]
    steps = ", ".join(f"{t:g}" for t in found.timesteps)
    head = f"{found.plan.solver}, {found.plan.nfe} evaluations, at t = {steps}"
    kept = [f"The search came no nearer than {found.spacing}: these are its timesteps."] if found.spacing else []
    note = "distance of the samples from the ends of fine trajectories, RMS in network range:"
    return "\n".join([head, *kept, "", note, *lines, *(f"written: {name}" for name in written)])


def _texts(path: Path, count: int) -> list[str]:
    """So many of the file's lines, in turn; ValueError for fewer than it holds."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"--prompts: {path}: holds no text, expected one a line")
    if len(lines) > count:
        raise ValueError(
            f"--prompts: {path}: holds {len(lines)} texts, but --samples is {count}; make it at least {len(lines)}"
        )
    return [lines[i % len(lines)] for i in range(count)]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_command(build_parser(), run, argv)


def _bar(shown: bool) -> Any:
    from tqdm import tqdm

    return tqdm(desc="tune", unit="call", disable=not shown or not sys.stderr.isatty(), leave=False, file=sys.stderr)
