"""What a run has found, and the report that it makes: complete at any time, so that a run cut short leaves one too."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from benchmarks.gpu.asked import Asked, Group
from benchmarks.gpu.skipping import left_out, untimed_entry
from benchmarks.gpu.table import BUSY, figures
from benchmarks.models import Model
from ddpm_deploy.backends.base import usable_cpus
from ddpm_deploy.bench.limits import Limits
from ddpm_deploy.bench.machine import describe_machine
from ddpm_deploy.bench.record import Report, Row

INVARIANCE, TARGETS = "batch invariance", "targets"
PROTOCOL = {
    "transfers": "host arrays in and host arrays out, inside of the timed region; ours makes its noise from the seed",
    "order": "all contenders of a group in every round, in an order drawn anew",
    "openings": "one of each contender, so intervals are over rounds; the twin is a copy of its own",
    "parity": "asserted before anything is timed: single steps against float64, samples against float32",
    "float32 on GPUs": "TF32 off, but in rows of precision tf32",
}


@dataclass
class Findings:
    """busy, invariance: by path. gpu: what nvidia-smi told, moment by moment. work: of one forward, by model and batch.

    untimed: groups that did not fit into the time. machine: as it was before anything ran.
    """

    asked: Asked
    models: list[Model] = field(default_factory=list)
    limits: Limits | None = None
    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    untimed: list[Group] = field(default_factory=list)
    busy: dict[str, Any] = field(default_factory=dict)
    invariance: dict[str, Any] = field(default_factory=dict)
    gpu: list[dict[str, Any]] = field(default_factory=list)
    work: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=lambda: describe_machine(usable_cpus()))


def make_report(found: Findings) -> Report:
    """With the targets and what was measured of each among its settings, where the pages show them."""
    asked = found.asked
    settings = {"device": asked.device, "minutes": asked.minutes, **PROTOCOL, INVARIANCE: found.invariance}
    report = Report(
        name="gpu, rehearsed on a CPU" if asked.rehearse else "gpu",
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        command=asked.command(),
        mode="rehearsal" if asked.rehearse else "full",
        model=_models(found.models),
        machine=found.machine,
        settings=settings,
        limits={**_peaks(found.limits), "work of one forward": found.work, BUSY: found.busy},
        rows=tuple(found.rows),
        skipped=_left_out(found),
        sections={"gpu": list(found.gpu)},
    )
    targets = {figure.what: f"{figure.value} ({figure.target}): {figure.verdict}" for figure in figures(report)}
    return replace(report, settings={**settings, TARGETS: targets})


def _left_out(found: Findings) -> tuple[dict[str, str], ...]:
    """What was skipped for a reason of its own, then all that there was no time for."""
    untimed = [untimed_entry(found.untimed, len(found.asked.groups()))] if found.untimed else []
    return (*left_out(found.skipped), *untimed)


def _models(models: list[Model]) -> dict[str, Any]:
    return {
        "name": ", ".join(model.name for model in models),
        "trained": all(model.trained for model in models),
        "models": [
            {
                "name": model.bundle.manifest.model.name,
                "digest": model.bundle.digest,
                "trained": model.trained,
                "weights": model.note,
            }
            for model in models
        ],
    }


def _peaks(limits: Limits | None) -> dict[str, Any]:
    if limits is None:
        return {}
    products = {
        name: {"gflops": limit.value, "library": limit.library, "size": limit.size}
        for name, limit in limits.products.items()
    }
    return {"peaks": products, "bandwidth": {"gb_s": limits.bandwidth.value, "size": limits.bandwidth.size}}
