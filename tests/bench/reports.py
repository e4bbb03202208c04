"""Reports with a known truth: every contender's time is set, noise and drift are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ddpm_deploy.bench.record import OWN, PEER, TWIN, Parity, Report, Row

EAGER, COMPILED = "diffusers eager fp32", "torch.compile fp32"
OURS = ("onnxruntime fp32", "onnxruntime int8", "openvino fp32", "torch fp32")
CHAIN, BY_HAND = "diffusers DDPMPipeline fp32", "diffusers UniPC loop fp32"
CHOICE = "a picture, a thousand evaluations or twelve, batch 1"
PEERS = (EAGER, COMPILED, "ONNX Runtime, plain export", "OpenVINO, plain export", CHAIN, BY_HAND)
TWINS = ("onnxruntime fp32 (twin)",)

# Milliseconds of one evaluation, by batch: the truth behind every report.
STEP_MS = {
    "onnxruntime fp32": {1: 1.20, 8: 3.10, 32: 10.4},
    "onnxruntime int8": {1: 1.28, 8: 2.75, 32: 8.30},
    "openvino fp32": {1: 1.60, 8: 4.40, 32: 13.9},
    "torch fp32": {1: 4.90, 8: 8.60, 32: 21.5},
    EAGER: {1: 7.32, 8: 12.4, 32: 29.5},
    COMPILED: {1: 2.90, 8: 6.20, 32: 17.8},
    "ONNX Runtime, plain export": {1: 1.55, 8: 3.50, 32: 11.5},
    "OpenVINO, plain export": {1: 1.75, 8: 4.70, 32: 14.6},
    "onnxruntime fp32 (twin)": {1: 1.20, 8: 3.10, 32: 10.4},
}
ERRORS = {"onnxruntime int8": 1.1e-1, "openvino fp32": 2.1e-6, EAGER: 4.0e-7, COMPILED: 9.0e-7, "torch fp32": 0.0}
PSNR_DB = {"onnxruntime int8": 33.2}
SOLVERS = (("unipc", 12), ("ddim", 50), ("ddpm", 1000))
BATCHES = (1, 8, 32)


def kind_of(contender: str) -> str:
    return TWIN if contender in TWINS else PEER if contender in PEERS else OWN


def drift(rounds: int, rng: np.random.Generator, size: float = 0.05) -> np.ndarray:
    """What all contenders of a round share: (R,), a slow swing and a random walk."""
    swing = size * np.sin(np.linspace(0, 3, rounds) + rng.uniform(0, 6))
    return np.exp(swing + np.cumsum(rng.normal(0, size / 20, rounds)))


def times(seconds: float, shared: np.ndarray, rng: np.random.Generator, cv: float) -> tuple[float, ...]:
    """Samples of one contender: lognormal jitter of its own, and now and then an interruption."""
    jitter = np.exp(rng.normal(0, cv, len(shared)))
    interrupted = 1 + (rng.random(len(shared)) < 0.02) * rng.exponential(0.5, len(shared))
    return tuple(float(one) for one in seconds * shared * jitter * interrupted)


def make_rows(
    suite: str,
    group: str,
    ms: Mapping[str, float],
    *,
    batch: int = 1,
    nfe: int = 1,
    solver: str | None = None,
    rounds: int = 60,
    cv: float = 0.04,
    drifting: float = 0.05,
    rng: np.random.Generator,
    **extra: Any,
) -> list[Row]:
    """One group: the contenders of `ms` in the same rounds."""
    shared = drift(rounds, rng, drifting)
    return [
        Row(
            id=f"{group} / {name}",
            suite=suite,
            group=group,
            contender=name,
            kind=kind_of(name),
            precision="int8" if name.endswith("int8") else "fp32",
            batch=batch,
            nfe=nfe,
            samples_s=times(per_evaluation * nfe / 1e3, shared, rng, cv),
            command=f'pytest benchmarks -k "{suite} and batch{batch}"',
            solver=solver,
            parity=parity_of(name, solver),
            percent_of_limit=41.0 if suite == "step" and kind_of(name) == OWN and solver is None else None,
            limit="fp32 matrix product" if suite == "step" else None,
            warmup_rounds=9,
            **extra,
        )
        for name, per_evaluation in ms.items()
    ]


def parity_of(contender: str, solver: str | None = None) -> Parity:
    precision = "int8" if contender.endswith("int8") else "fp32"
    if solver:
        decibels = PSNR_DB.get(contender, 126.8)
        figures = {"final_max_abs": 10 ** (-decibels / 20) * 3, "final_psnr_db": decibels}
        return Parity(figures, f"{precision}: final PSNR at least {60 if precision == 'fp32' else 25} dB", "trained")
    figures = {"relative_l2": ERRORS.get(contender, 2.0e-6)}
    bound = 1e-4 if precision == "fp32" else 0.2
    return Parity(figures, f"{precision}: relative L2 of a prediction at most {bound:g}", "trained")


def step_rows(rng: np.random.Generator, scale: Mapping[str, float] | None = None, **options: Any) -> list[Row]:
    """The three groups of single evaluations; scale: of some contenders' true times."""
    found: list[Row] = []
    for batch in BATCHES:
        ms = {name: by_batch[batch] * (scale or {}).get(name, 1.0) for name, by_batch in STEP_MS.items()}
        found += make_rows("step", f"one evaluation, batch {batch}", ms, batch=batch, rng=rng, **options)
    return found


def sampling_rows(rng: np.random.Generator) -> list[Row]:
    found: list[Row] = []
    for solver, nfe in SOLVERS:
        names = ("onnxruntime fp32", EAGER) if nfe == 1000 else ("onnxruntime fp32", "onnxruntime int8", EAGER)
        ms = {name: STEP_MS[name][1] for name in names}
        group, rounds = f"{solver}, {nfe} evaluations, batch 1", 10 if nfe == 1000 else 40
        found += make_rows("sampling", group, ms, nfe=nfe, solver=solver, rounds=rounds, rng=rng)
    return found


def choice_rows(rng: np.random.Generator) -> list[Row]:
    """A group in which each chooses its solver: a step of the slow way takes 6.0 ms, of the few-step peer 7.32."""
    work = {CHAIN: ("ddpm", 1000, 6.0), BY_HAND: ("unipc", 12, 7.32), "onnxruntime fp32": ("unipc", 12, 1.2)}
    ms = {name: nfe * step for name, (_, nfe, step) in work.items()}
    rows = make_rows("sampling", CHOICE, ms, rounds=40, solver="any", rng=rng)
    return [replace(row, solver=work[row.contender][0], nfe=work[row.contender][1]) for row in rows]


def small_report(seed: int = 0, scale: Mapping[str, float] | None = None, **options: Any) -> Report:
    """Single evaluations only."""
    rows = step_rows(np.random.default_rng(seed), scale, **options)
    return Report("digits, quick", "2026-11-20T12:00:00Z", "pytest benchmarks --mode quick", "quick",
                  dict(MODEL), dict(MACHINE), {"threads": 2, "mode": "quick"}, {}, tuple(rows))  # fmt: skip


def full_report(seed: int = 0) -> Report:
    """Every suite, every section."""
    rng = np.random.default_rng(seed)
    deadline = make_rows(
        "deadline", "one evaluation every 20 ms", {"onnxruntime fp32": 1.2, "torch fp32": 4.9}, rounds=600, rng=rng,
        extra={"period_ms": 20.0, "missed": 3, "of": 600},
    )  # fmt: skip
    noisy = make_rows("condition", "labels, batch 1", {"onnxruntime fp32": 2.0, EAGER: 9.0}, rounds=12, cv=0.4, rng=rng)
    rows = _with_limits([*step_rows(rng, rounds=100), *sampling_rows(rng), *deadline, *noisy])
    return replace(
        small_report(),
        name="digits, full",
        mode="full",
        command="pytest benchmarks --mode full",
        settings={"threads": 2, "mode": "full", "price_per_hour": 0.34, "currency": "USD"},
        limits=LIMITS,
        rows=tuple(rows),
        skipped=SKIPPED,
        sections=sections(rng),
    )


def _with_limits(rows: list[Row]) -> list[Row]:
    work_gflop, peak = 0.0305, 155.0
    return [
        replace(row, percent_of_limit=100 * work_gflop * row.batch / row.summary.median.value / peak, limit="fp32 peak")
        if row.suite == "step" and row.precision == "fp32"
        else replace(row, percent_of_limit=None, limit=None)
        for row in rows
    ]


def sections(rng: np.random.Generator) -> dict[str, Any]:
    quality = [
        ("ddpm", 1000, 0.880, 2.06), ("ddim", 50, 0.858, 2.18), ("ddim", 12, 0.845, 2.13),
        ("dpmpp_2m", 12, 0.868, 2.08), ("unipc", 12, 0.874, 2.05), ("unipc", 6, 0.836, 2.08),
    ]  # fmt: skip
    figures = (("mean top probability", 2, 0.915), ("spread of the pictures", 3, 2.06))
    return {
        "quality": [
            {"contender": "onnxruntime fp32", "solver": entry[0], "steps": entry[1], "nfe": entry[1], "figure": figure,
             "value": entry[k], "baseline": baseline, "n": 500, "samples": [entry[k]] * 500}
            for figure, k, baseline in figures for entry in quality
        ],
        "parity_curves": [_curve("onnxruntime fp32", 2e-6, rng), _curve("openvino fp32", 1.6e-6, rng),
                          _curve("onnxruntime int8", 7e-2, rng)],
        "cold_start": [
            {"contender": "onnxruntime fp32", "import_s": 0.19, "load_s": 0.11, "first_picture_s": 0.02,
             "total_s": 0.32, "total_samples_s": [0.31, 0.32, 0.35], "peak_rss_bytes": 96 * 2**20,
             "artefact_bytes": 2.75 * 2**20, "n": 3},
            {"contender": EAGER, "import_s": 3.1, "load_s": 0.42, "first_picture_s": 0.11, "total_s": 3.63,
             "total_samples_s": [3.6, 3.63, 4.0], "peak_rss_bytes": 512 * 2**20, "artefact_bytes": 2.71 * 2**20,
             "n": 3},
        ],
        "sizes": [{"file": f"denoiser.{p}.onnx", "precision": p, "size_bytes": s * 2**20}
                  for p, s in (("fp32", 2.75), ("int8", 1.05))],
        "overhead": [{"what": "sampler, unipc, a step", "value": 31.0, "unit": "µs", "target": "below 50 µs"},
                     {"what": "import beyond numpy", "value": 34.0, "unit": "ms", "target": "below 100 ms"}],
        "export": [{"what": "denoiser, fp32, onnxruntime-cpu", "seconds": 6.2, "size_bytes": 2.75 * 2**20}],
        "crosschecks": [{"row": "one evaluation, batch 1 / onnxruntime fp32", "ours_ms": 1.21, "version": "1.32.0",
                         "tool": "onnxruntime_perf_test", "figure_ms": 1.19, "what": "median of 1000 runs"}],
        "loadgen": [{"scenario": "SingleStream", "figure": "90th percentile latency", "value": 1.42, "unit": "ms",
                     "n": 1024, "label": "mlcommons-loadgen 5.1"}],
    }  # fmt: skip


def _curve(contender: str, error: float, rng: np.random.Generator) -> dict[str, Any]:
    t = np.linspace(990, 10, 50)
    wobble = np.exp(rng.normal(0, 0.12, 50))
    prediction = error * (0.35 + 0.65 * np.linspace(0, 1, 50) ** 2) * wobble
    drifted = np.cumsum(prediction) * 0.2
    return {"contender": contender, "solver": "ddim", "t": t.tolist(), "prediction_relative_l2": prediction.tolist(),
            "drift_max_abs": drifted.tolist(), "weights": "trained"}  # fmt: skip


MODEL = {
    "name": "digits",
    "digest": "sha256:6f1d0c2e9b",
    "trained": True,
    "sample_shape": [1, 8, 8],
    "parameters": 698_113,
}
MACHINE = {
    "cpu": {"model": "AMD EPYC 7763", "flags": ["avx2", "fma"], "physical": 1, "logical": 2, "usable": 2},
    "threads": 2,
    "memory_bytes": 8 * 2**30,
    "load_average": [0.31, 0.22, 0.1],
    "system": "Linux",
    "python": "3.11.9",
    "versions": {"torch": "2.11.0", "onnxruntime": "1.32.0", "openvino": "2026.4.1", "diffusers": "0.42.1"},
    "git": {"commit": "0123456789abcdef", "dirty": False},
    "gpus": [],
}
LIMITS = {
    "peaks": {
        "fp32": {"gflops": 155.0, "library": "torch", "size": [1024, 1024, 1024]},
        "int8": {"gflops": 248.0, "library": "onnxruntime", "size": [1024, 1024, 1024]},
    },
    "bandwidth": {"gb_s": 20.1},
    "work": {"gflop": 0.0305, "weights_bytes": 2_792_452},
}
SKIPPED = (
    {"what": "tensorrt fp16", "reason": "no NVIDIA GPU on this machine"},
    {"what": "openvino bf16", "reason": "the processor has no bf16"},
)
