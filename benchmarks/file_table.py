"""Size, parity and speed of every graph of a bundle, as a table: `python benchmarks/file_table.py BUNDLE`.

Parity is what export recorded. Denoisers that a CPU runtime reads are timed here, all in turn in every round, against
the portable float32 one on ONNX Runtime; `sampler` graphs by the time of one evaluation. What is made for a GPU has no
time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_deploy.backends import Backend, open_backend
from ddpm_deploy.bundle import Bundle, ModelFile, read_bundle
from ddpm_deploy.job import example_conditions, plan_settings
from ddpm_deploy.noise import initial_noise
from ddpm_deploy.one_file import sampler_feeds
from ddpm_deploy.solvers import make_plan

RUNTIMES = {"onnx": "onnxruntime", "onnxruntime-cpu": "onnxruntime", "openvino": "openvino"}


def timed(bundle: Bundle, threads: int, batch: int) -> dict[str, tuple[Callable[[], Any], int]]:
    """A call for every graph that runs here, and how many evaluations it makes."""
    found = {}
    for file in bundle.manifest.files:
        if file.target in RUNTIMES and file.role in ("denoiser", "sampler"):
            runtime, options = RUNTIMES[file.target], {"role": file.role, "precision": file.precision}
            backend = open_backend(runtime, bundle, threads=threads, **options)
            feeds, evaluations = feeds_of(bundle, file, backend, batch)
            found[file.path] = (lambda backend=backend, feeds=feeds: backend.run(feeds), evaluations)
    return found


def feeds_of(bundle: Bundle, file: ModelFile, backend: Backend, batch: int) -> tuple[Mapping[str, np.ndarray], int]:
    """Noise at half time, or the default plan."""
    manifest = bundle.manifest
    x = initial_noise(0, range(batch), manifest.sample_shape)
    conditions = example_conditions(manifest.conditions, batch)
    if file.role == "denoiser":
        return {"x": x, "t": np.full(batch, manifest.schedule.T // 2, np.float32), **conditions}, 1
    plan = make_plan(schedule=manifest.schedule, **plan_settings(manifest, None, None, None, None, {}))
    return {**sampler_feeds(backend.inputs, plan, x), **conditions}, plan.nfe


def medians(calls: Mapping[str, tuple[Callable[[], Any], int]], rounds: int) -> dict[str, tuple[float, float]]:
    """Milliseconds of one evaluation, and the speed-up over the first call, as medians over the rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call, _ in calls.values():
        call()
    for i in range(rounds):
        for name in list(calls) if i % 2 else list(calls)[::-1]:
            call, evaluations = calls[name]
            began = time.perf_counter()
            call()
            seconds[name].append((time.perf_counter() - began) / evaluations)
    first = next(iter(seconds.values()))
    return {
        name: (1e3 * statistics.median(values), statistics.median(a / b for a, b in zip(first, values, strict=True)))
        for name, values in seconds.items()
    }


def render(bundle: Bundle, speed: Mapping[int, Mapping[str, tuple[float, float]]]) -> str:
    """A Markdown table, one line for each ONNX file."""
    batches = list(speed)
    heads = ["file", "MiB", "relative L2", "next state, RMS", "samples, PSNR"]
    heads += [f"batch {batch}, ms" for batch in batches] + [f"batch {batch}, speed-up" for batch in batches]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for file in bundle.manifest.files:
        if file.parity is None:
            continue
        shown = [f"{file.parity[key]:.1e}" if key in file.parity else "" for key in ("relative_l2", "next_state_rms")]
        psnr = f"{file.parity['final_psnr_db']:.0f} dB" if "final_psnr_db" in file.parity else ""
        times = [speed[batch].get(file.path) for batch in batches]
        cells = [f"`{file.path}`", f"{file.size_bytes / 2**20:.2f}", *shown, psnr]
        cells += [f"{t[0]:.2f}" if t else "" for t in times] + [f"{t[1]:.2f}x" if t else "" for t in times]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--batches", type=lambda text: [int(n) for n in text.split(",")], default=[1, 8])
    args = parser.parse_args(argv)
    bundle = read_bundle(args.bundle)
    speed = {batch: medians(timed(bundle, args.threads, batch), args.rounds) for batch in args.batches}
    print(f"{bundle.manifest.model.name}, {args.threads} threads, median of {args.rounds} rounds\n")
    print(render(bundle, speed))


if __name__ == "__main__":
    main()
