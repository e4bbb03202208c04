"""`python -m ddpm_deploy.parity`: compare runtimes with the float32 reference, live or as recorded in the bundle."""

from __future__ import annotations

import argparse
import json as json_module
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ddpm_deploy.backends import BACKENDS, Backend, available_backends, open_backend
from ddpm_deploy.bundle import Bundle, default_bundle, read_bundle
from ddpm_deploy.cli import PACKAGED, make_parser, require_writable, run_command, some_path
from ddpm_deploy.guidance import checked_guidance
from ddpm_deploy.job import checked_count, example_conditions
from ddpm_deploy.noise import initial_noise, noise_source
from ddpm_deploy.parity import report
from ddpm_deploy.parity.budget import Budget, budget_for
from ddpm_deploy.parity.measure import Comparison, compare
from ddpm_deploy.parity.recorded import about_recorded, compare_recorded, recorded_reference
from ddpm_deploy.sampler import Sampler
from ddpm_deploy.solvers import SOLVERS
from ddpm_deploy.spacing import SPACINGS

OVER_BUDGET = 1
REFERENCE = "torch"
SAMPLES = 4
SEED = 0
WRITTEN = ("parity.json", "parity.png")


def build_parser() -> argparse.ArgumentParser:
    """The command line of `parity`."""
    parser = make_parser("parity", "Measure how far runtimes are from the float32 reference; exits 1 when over budget.")
    add = parser.add_argument
    add("bundle", nargs="?", help=f"bundle folder, or {PACKAGED}")
    add("--backends", metavar="A,B:bf16", help="runtimes, each with an optional precision; default: all there are")
    add("--against", choices=("torch", "reference"), default="torch",
        help="torch: run the network's own weights; reference: what export recorded, needs no torch")  # fmt: skip
    add("--solver", choices=SOLVERS, metavar="NAME", help=f"one of {', '.join(SOLVERS)}; default: the bundle's")
    add("--steps", type=int, help="1 to T; default: the bundle's, or T for ddpm")
    add("--spacing", choices=SPACINGS, metavar="NAME", help=f"one of {', '.join(SPACINGS)}; default: the bundle's")
    add("--num", type=int, help=f"samples in the batch; default: {SAMPLES}")
    add("--seed", type=int, help=f"seed of the noise; default: {SEED}")
    add("--guidance", type=float, metavar="W", help="weight, where the model can be guided; default: 1, without")
    add("--device", default="cpu", help="such as cpu or cuda:0")
    add("--threads", type=int, help="threads of one call; default: every CPU that the process may use")
    add("--max-step-error", type=_bound, help="budget of the relative error of one step; default: by precision")
    add("--max-final-error", type=_bound, help="budget of the final max-abs error; default: by precision")
    add("--out", type=some_path, metavar="DIR", help="also write parity.json and parity.png there")
    add("--json", action="store_true", help="print everything measured as JSON")
    return parser


def run(
    *,
    bundle: str | None,
    backends: str | None,
    against: str,
    solver: str | None,
    steps: int | None,
    spacing: str | None,
    num: int | None,
    seed: int | None,
    guidance: float | None,
    device: str,
    threads: int | None,
    max_step_error: float | None,
    max_final_error: float | None,
    out: Path | None,
    json: bool,
) -> int:
    """Measure and report; see `build_parser` for the arguments."""
    read = read_bundle(default_bundle() if bundle is None else bundle)
    for file in [] if out is None else [out / name for name in WRITTEN]:
        require_writable(file)
    wanted = _candidates(backends, device)
    budgets = {_label(*pair): _budget(pair[1], max_step_error, max_final_error) for pair in wanted}
    with ExitStack() as stack:
        samplers = {
            _label(name, precision): stack.enter_context(
                Sampler(open_backend(name, read, precision=precision, device=device, threads=threads), read.manifest)
            )
            for name, precision in wanted
        }
        if against == "reference":
            _refuse_flags(solver, steps, spacing, num, seed, guidance)
            recorded = recorded_reference(read)
            with _bar(recorded.trajectory.plan.nfe, shown=not json) as bar:
                results = compare_recorded(recorded, samplers, _peak(read), bar.update)
            about = about_recorded(recorded)
        else:
            torch = stack.enter_context(open_backend(REFERENCE, read, device=device, threads=threads))
            choice, num, seed = (solver, steps, spacing), SAMPLES if num is None else num, seed or SEED
            weight = 1.0 if guidance is None else guidance
            results, about = _against_torch(torch, read, samplers, choice, num, seed, weight, shown=not json)
    return _publish(results, budgets, {"bundle": read.digest, "against": against, **about}, out, json)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_command(build_parser(), run, argv)


def _against_torch(
    torch: Backend,
    bundle: Bundle,
    samplers: Mapping[str, Sampler],
    choice: tuple[str | None, int | None, str | None],
    num: int,
    seed: int,
    weight: float,
    shown: bool,
) -> tuple[list[Comparison], dict[str, Any]]:
    sampler = Sampler(torch, bundle.manifest)
    plan, shape = sampler.plan(*choice), bundle.manifest.sample_shape
    samples = range(checked_count(num, None, shape))
    condition = example_conditions(bundle.manifest.conditions, num)
    guidance = checked_guidance(weight, None, bundle.manifest, bool(condition), num)
    reference, *candidates = (s.denoiser(plan, condition, guidance) for s in (sampler, *samplers.values()))
    with _bar(plan.nfe, shown) as bar:
        results = compare(
            reference,
            dict(zip(samplers, candidates, strict=True)),
            plan,
            initial_noise(seed, samples, shape),
            noise_source(seed, samples, shape),
            peak=_peak(bundle),
            on_row=bar.update,
        )
    return results, {"solver": plan.solver, "nfe": plan.nfe, "samples": num, "seed": seed, "guidance": weight}


def _publish(
    results: Sequence[Comparison], budgets: Mapping[str, Budget], about: dict[str, Any], out: Path | None, json: bool
) -> int:
    title = f"{about['solver']}, {about['nfe']} evaluations, {about['samples']} samples, against {about['against']}"
    data = report.to_dict(results, budgets, about)
    print(json_module.dumps(data) if json else f"{title}\n\n{report.table(results, budgets)}")
    if out is not None:
        figures, plot = (out / name for name in WRITTEN)
        figures.write_text(json_module.dumps(data, indent=1))
        report.plot(results, budgets, plot, title)
        if not json:
            print(f"\nwritten: {figures}, {plot}")
    return OVER_BUDGET if any(budgets[result.name].failures(result) for result in results) else 0


def _candidates(text: str | None, device: str) -> list[tuple[str, str]]:
    """(name, precision) of every runtime to be measured; torch in fp32 is the reference itself."""
    if text is None:
        there = {name: backend for name, backend in available_backends().items() if backend.available}
        usable = [name for name, backend in there.items() if device != "cpu" or device in backend.devices]
        found = [name for name in usable if name != REFERENCE]
        if not found:
            raise ValueError("--backends: no runtime is installed beside torch; pip install 'ddpm-deploy[cpu]'")
        return [(name, "fp32") for name in found]
    pairs = [(name, precision or "fp32") for name, _, precision in (item.partition(":") for item in text.split(","))]
    for name, _ in pairs:
        if name not in BACKENDS:
            raise ValueError(f"--backends: got {name!r}, expected names of {', '.join(BACKENDS)}, separated by commas")
    pairs = [pair for pair in dict.fromkeys(pairs) if pair != (REFERENCE, "fp32")]
    if not pairs:
        raise ValueError(f"--backends: {REFERENCE} is the reference; name another runtime to compare with it")
    return pairs


def _refuse_flags(*flags: object) -> None:
    if any(flag is not None for flag in flags):
        raise ValueError(
            "--solver, --steps, --spacing, --num, --seed, --guidance: the recorded reference has a plan, samples and "
            "weights of its own; leave them out"
        )


def _budget(precision: str, step: float | None, final: float | None) -> Budget:
    default = budget_for(precision)
    return Budget(
        default.prediction_relative_l2 if step is None else step,
        default.final_max_abs if final is None else final,
        default.final_psnr_db,
    )


def _bound(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"got {text}, expected a positive number")
    return value


def _label(name: str, precision: str) -> str:
    return f"{name} {precision}"


def _peak(bundle: Bundle) -> float:
    clip = bundle.manifest.clip
    return 2.0 if clip is None else clip[1] - clip[0]


def _bar(rows: int, shown: bool) -> Any:
    from tqdm import tqdm

    return tqdm(
        total=rows,
        desc="parity",
        unit="step",
        disable=not shown or not sys.stderr.isatty(),
        leave=False,
        file=sys.stderr,
    )


if __name__ == "__main__":
    raise SystemExit(main())
