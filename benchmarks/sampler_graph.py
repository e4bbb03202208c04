"""One run of the `sampler` graph beside the per-step loop: `python benchmarks/sampler_graph.py BUNDLE`.

Both are ONNX Runtime on the CPU, on the same threads, which sleep between calls. Each round times both, one after the
other, the first of them in turn; the ratio is the median over the rounds. The target is at most 1.03.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from ddpm_deploy import Sampler
from ddpm_deploy.backends import open_backend
from ddpm_deploy.bundle import read_bundle
from ddpm_deploy.job import example_conditions
from ddpm_deploy.noise import initial_noise
from ddpm_deploy.one_file import sample_with_graph

TARGET_RATIO = 1.03
TOLERANCE = 1e-4


def timed_ms(draw: Callable[[], np.ndarray]) -> float:
    began = time.perf_counter()
    draw()
    return (time.perf_counter() - began) * 1e3


def paired_ms(
    graph: Callable[[], np.ndarray], loop: Callable[[], np.ndarray], rounds: int
) -> list[tuple[float, float]]:
    """Times of (graph, loop) in each round."""
    times = []
    for i in range(rounds):
        if i % 2:
            loop_ms = timed_ms(loop)
            times.append((timed_ms(graph), loop_ms))
        else:
            graph_ms = timed_ms(graph)
            times.append((graph_ms, timed_ms(loop)))
    return times


def compare(args: argparse.Namespace, batch: int) -> str:
    """One line of the report; the two must draw the same samples before anything is timed."""
    bundle = read_bundle(args.bundle)
    options = {"precision": args.precision, "threads": args.threads}
    condition = example_conditions(bundle.manifest.conditions, batch)
    x_T = initial_noise(0, range(batch), bundle.manifest.sample_shape)
    with (
        Sampler.load(bundle, **options) as sampler,
        open_backend("onnxruntime", bundle, role="sampler", **options) as one,
    ):
        plan = sampler.plan(args.solver, args.steps)
        denoise = sampler.denoiser(plan, condition)

        def graph() -> np.ndarray:
            return sample_with_graph(one, plan, x_T, condition=condition)

        def loop() -> np.ndarray:
            return plan.run(denoise, x_T)

        difference = np.abs(graph() - loop()).max()
        if difference > TOLERANCE:
            raise SystemExit(f"batch {batch}: the two differ by {difference:.2g}, expected at most {TOLERANCE}")
        paired_ms(graph, loop, args.warmup)
        times = paired_ms(graph, loop, args.rounds)
    graph_ms, loop_ms = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(a / b for a, b in times)
    verdict = "within" if ratio <= TARGET_RATIO else "OVER"
    return (
        f"batch {batch}, {plan.solver} with {plan.nfe} rows: graph {graph_ms:.2f} ms, loop {loop_ms:.2f} ms, "
        f"ratio {ratio:.3f}, {verdict} the target of {TARGET_RATIO}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("bundle", help="folder with a denoiser and a sampler for ONNX Runtime")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="batch sizes")
    parser.add_argument("--solver", default="unipc", help="one that draws no noise")
    parser.add_argument("--steps", type=int, default=12, help="of the solver")
    parser.add_argument("--precision", default="fp32", help="of both files")
    parser.add_argument("--threads", type=int, default=2, help="of one call")
    parser.add_argument("--rounds", type=int, default=40, help="pairs that count")
    parser.add_argument("--warmup", type=int, default=5, help="pairs before them")
    args = parser.parse_args()
    for batch in args.batches:
        print(compare(args, batch), flush=True)


if __name__ == "__main__":
    main()
