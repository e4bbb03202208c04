"""Does the gate catch a slowdown of 10 %, and does it cry wolf? `python -m benchmarks.gate_trial`

Measures a subset of twenty seconds again and again, each time in a fresh process: once as the base, some runs
unchanged, some with every own call made longer by a tenth of itself. Prints how many of each the gate failed, and in
how many runs the interval of the A/A ratio held 1. Takes about fifteen minutes; let nothing else run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from benchmarks.harness import Bench, Trial, in_rounds
from benchmarks.peers import ONNXRUNTIME
from benchmarks.reporting import make_report
from benchmarks.specs import Options, Spec
from benchmarks.subjects import evaluation
from ddpm_deploy.bench.gate import compare, fails
from ddpm_deploy.bench.measure import Effort
from ddpm_deploy.bench.record import OWN, PEER, Report, read_report, write_report
from ddpm_deploy.bench.report.views import twins

BATCHES = (1, 8)
SECONDS = 20.0
SLOWDOWN, TOLERANCE = 0.10, 0.05
SLOWED, UNCHANGED = 10, 20


def subset(options: Options) -> list[Spec]:
    """Our ONNX Runtime beside a plain export on the same runtime, which is the anchor."""
    who = [("onnxruntime", OWN), (ONNXRUNTIME, PEER)]
    return [
        Spec("step", "one evaluation", name, "fp32", n, kind) for n in options.batches or BATCHES for name, kind in who
    ]


def measure(options: Options, slowdown: float) -> Report:
    """One run of the subset."""
    bench = Bench(options)
    effort = Effort(budget_s=SECONDS / len(BATCHES), min_rounds=30, max_rounds=2000)

    def build(spec: Spec, bench: Bench) -> Trial:
        trial = replace(evaluation(spec, bench), limit=lambda seconds: None)
        return trial if spec.kind == PEER else replace(trial, call=slowed(trial.call, slowdown))

    with bench:
        for group in dict.fromkeys(spec.group for spec in subset(options)):
            bench.measure({s: str(s) for s in subset(options) if s.group == group}, build, in_rounds(effort))
        return make_report(bench, "gate trial", "python -m benchmarks.gate_trial")


def slowed(call: Callable[[], object], part: float) -> Callable[[], object]:
    """The same call, followed by a wait of so large a part of its own time."""

    def longer() -> None:
        began = time.perf_counter()
        call()
        until = time.perf_counter() + part * (time.perf_counter() - began)
        while time.perf_counter() < until:
            pass

    return longer if part else call


def in_a_process(args: argparse.Namespace, slowdown: float, out: Path) -> Report:
    """`measure` in a fresh interpreter."""
    command = [sys.executable, "-m", "benchmarks.gate_trial", "--one", str(out), "--slowdown", str(slowdown)]
    subprocess.run([*command, "--model", args.model, "--threads", str(args.threads)], check=True)
    return read_report(out)


def trial(args: argparse.Namespace) -> str:
    """All runs, slowed and unchanged ones in turn, and what the gate made of them."""
    caught = alarms = covered = pairs = 0
    with tempfile.TemporaryDirectory() as folder, tqdm(total=1 + args.slowed + args.unchanged, unit="run") as bar:
        base = in_a_process(args, 0.0, Path(folder) / "base.json")
        bar.update()
        for i in range(max(args.slowed, args.unchanged)):
            if i < args.unchanged:
                report = in_a_process(args, 0.0, Path(folder) / f"unchanged{i}.json")
                alarms += i < args.slowed and fails(compare(base, report, TOLERANCE))
                covered += sum(twin.ratio.covers(1) for twin in twins(report)[:1])
                pairs += 1
                bar.update()
            if i < args.slowed:
                report = in_a_process(args, SLOWDOWN, Path(folder) / f"slowed{i}.json")
                caught += fails(compare(base, report, TOLERANCE))
                bar.update()
    return (
        f"slowed by {SLOWDOWN:.0%}: the gate failed {caught} of {args.slowed} runs at a tolerance of {TOLERANCE:.0%}\n"
        f"unchanged: it failed {alarms} of {min(args.slowed, args.unchanged)}\n"
        f"A/A: the 95 % interval held 1 in {covered} of {pairs} runs"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="digits", help="as for pytest benchmarks (default: digits)")
    add("--threads", type=int, default=2, help="of every contender (default: 2)")
    add("--slowed", type=int, default=SLOWED, help=f"slowed runs (default: {SLOWED})")
    add("--unchanged", type=int, default=UNCHANGED, help=f"unchanged runs (default: {UNCHANGED})")
    add("--one", type=Path, metavar="JSON", help="measure once, and write the report there")
    add("--slowdown", type=float, default=0.0, help="with --one: how much longer every own call takes (default: 0)")
    args = parser.parse_args()
    if args.one is None:
        print(trial(args))
    else:
        write_report(measure(Options(args.model, threads=args.threads, batches=BATCHES), args.slowdown), args.one)


if __name__ == "__main__":
    main()
