"""Rows of this report beside what the runtimes' own tools say of the same graph: they share no code with ours."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from benchmarks.harness import Bench
from benchmarks.subjects import parity_in_words
from ddpm_deploy.bench.crosscheck import Check, onnxruntime_profiler, openvino_benchmark_app, trtexec
from ddpm_deploy.bench.measure import Contender, Effort, interleave
from ddpm_deploy.bench.record import OWN
from ddpm_deploy.bench.truth import feeds_for
from ddpm_deploy.errors import BackendUnavailable

SECONDS = 3.0
AGREE = 2.0  # a factor; a wrong unit, or another graph, is farther off, each time
ATTEMPTS = 2  # tool and row are not timed in the same rounds, and a machine may be disturbed between them

Tool = Callable[[bytes, Mapping[str, Sequence[int]], int], Check]


def test_openvino_against_its_benchmark_app(bench: Bench) -> None:
    _compare(bench, "openvino", "openvino", lambda *given: openvino_benchmark_app(*given, static=True, seconds=SECONDS))


def test_onnxruntime_against_its_profiler(bench: Bench) -> None:
    _compare(bench, "onnxruntime", "onnxruntime-cpu", lambda *given: onnxruntime_profiler(*given, seconds=SECONDS))


def test_tensorrt_against_trtexec(bench: Bench) -> None:
    if not bench.options.device.startswith("cuda"):
        bench.leave_out("cross-check by trtexec", "TensorRT runs on NVIDIA GPUs only")
    _compare(bench, "tensorrt", "tensorrt", lambda model, shapes, threads: trtexec(model, shapes, seconds=SECONDS))


def _compare(bench: Bench, backend: str, target: str, tool: Tool) -> None:
    """The largest batch, whose evaluation is long beside the cost of either clock."""
    bundle, threads, batch = bench.model.bundle, bench.options.threads, max(bench.batches)
    what = f"cross-check of {backend}"
    if not bench.options.own(backend) or (target != "tensorrt" and bench.options.device != "cpu"):
        bench.leave_out(what, "not among what is measured")
    try:
        sampler, parity = bench.sampler(backend, "fp32"), parity_in_words(backend, OWN, bench)
    except (BackendUnavailable, ImportError, ValueError) as error:
        bench.leave_out(what, " ".join(str(error).split()), backend)
    feeds = feeds_for(bundle.manifest, batch)
    model = bundle.open_bytes(bundle.file("denoiser", "fp32", target))
    own = Contender("own", lambda: sampler.backend.run(feeds))
    for _ in range(ATTEMPTS):
        check = tool(model, {name: array.shape for name, array in feeds.items()}, threads)
        if "reason" in check:
            bench.leave_out(f"cross-check by {check['tool']}", check["reason"])
        ours_ms = 1e3 * statistics.median(interleave([own], Effort(budget_s=SECONDS)).seconds["own"])
        agrees = 1 / AGREE < ours_ms / check["figure_ms"] < AGREE
        if agrees:
            break
    row = f"{backend} fp32, one evaluation, batch {batch}"
    bench.note("crosschecks", row=row, ours_ms=ours_ms, parity=parity, **check)
    assert agrees
