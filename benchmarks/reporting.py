"""What a session measured, as a report: facts about the run, then rows and sections as the suites left them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from benchmarks.harness import Bench
from ddpm_deploy.bench.limits import Limit, Limits
from ddpm_deploy.bench.machine import describe_machine
from ddpm_deploy.bench.measure import SHORT_S, STABLE
from ddpm_deploy.bench.record import Report
from ddpm_deploy.bench.work import Work

PROTOCOL = {
    "transfers": "host arrays in and host arrays out, inside of the timed region, for every contender",
    "spinning": "threads of PyTorch and ONNX Runtime: tenths of a millisecond, then they sleep; OpenVINO: as it is",
    "order": "all contenders of a group in every round, in an order drawn anew",
    "short calls": f"where a call of the group is under {1e3 * SHORT_S:g} ms, each follows untimed ones of its own",
    "warm-up": f"until no median of three rounds is {STABLE:.0%} under the fastest of the three before",
    "float32 on GPUs": "TF32 off for every contender",
    "parity": "asserted before anything is timed",
}


def make_report(bench: Bench, name: str, command: str, **settings: Any) -> Report:
    """The report of a session. settings: what else the command line said that a reader should know."""
    model, options = bench.model, bench.options
    manifest = model.bundle.manifest
    kept = {key: value for key, value in settings.items() if value is not None}
    return Report(
        name=name,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        mode="full" if options.full else "quick",
        model={
            "name": manifest.model.name,
            "digest": model.bundle.digest,
            "trained": model.trained,
            "weights": model.note,
            "sample_shape": list(manifest.sample_shape),
            "default plan": f"{manifest.defaults.solver}, {manifest.defaults.steps} steps",
        },
        machine=describe_machine(options.threads),
        settings={"threads": options.threads, "device": options.device, **PROTOCOL, **kept},
        limits=_limits(bench),
        rows=tuple(bench.rows),
        skipped=tuple({"what": what, "reason": reason} for what, reason in bench.skipped.items()),
        sections=dict(bench.sections),
    )


def _limits(bench: Bench) -> dict[str, Any]:
    """Only where they were measured, as a row was."""
    if "limits" not in vars(bench):
        return {}
    return {**_measured(bench.limits), "work of one forward": {n: _work(w) for n, w in _works(bench).items()}}


def _works(bench: Bench) -> Mapping[str, Work]:
    return {f"batch {batch}": work for batch, work in sorted(bench.counted.items())}


def _measured(limits: Limits) -> dict[str, Any]:
    return {
        "peaks": {name: {"gflops": limit.value, **_how(limit)} for name, limit in limits.products.items()},
        "bandwidth": {"gb_s": limits.bandwidth.value, **_how(limits.bandwidth)},
        "last-level cache, bytes": limits.cache_bytes,
    }


def _how(limit: Limit) -> dict[str, Any]:
    return {"library": limit.library, "size": limit.size, "skipped": dict(limit.skipped)}


def _work(work: Work) -> dict[str, float]:
    return {
        "gflop": work.flops / 1e9,
        "weights, MB": work.weight_bytes / 1e6,
        "at most moved, MB": work.bytes_upper / 1e6,
    }
