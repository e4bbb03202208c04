"""What a run of the benchmarks leaves: raw samples of every row and what they belong to, as `report.json`."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ddpm_deploy.bench.statistics import Interval, Summary, check_openings, paired_ratio, summarise
from ddpm_deploy.strict import from_dict

SCHEMA_VERSION = 2
OWN, PEER, TWIN = "own", "peer", "twin"
KINDS = (OWN, PEER, TWIN)
FILE = "report.json"

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Parity:
    """How near a row's output is to the float32 reference; asserted before the row is timed.

    figures: such as relative_l2, final_max_abs, final_psnr_db. budget: the bounds that held, in words.
    weights: "trained", or "random": on random weights parity says that two programs agree, nothing of pictures.
    """

    figures: Json
    budget: str
    weights: str


@dataclass(frozen=True)
class Row:
    """One contender in one group; rows of a group were timed in the same rounds, so their samples pair up.

    suite: step, sampling, deadline, ... group: what was asked of all, such as "one evaluation, batch 8".
    kind: own, peer, or twin (a second copy of an own row, which shows the noise). batch: samples a call draws.
    nfe: evaluations of the network in one call. samples_s: seconds of one call, round by round.
    openings: how many of the samples followed each opening of the contenders.
    percent_of_limit: of the hardware's limit, which `limit` names. command: what measures this row alone.
    extra: rows of the suite "deadline" have period_ms, missed, of; a twin may name its row in `of`, else it is called
    as that row and " (twin)".
    """

    id: str
    suite: str
    group: str
    contender: str
    kind: str
    precision: str
    batch: int
    nfe: int
    samples_s: tuple[float, ...]
    command: str
    solver: str | None = None
    parity: Parity | None = None
    percent_of_limit: float | None = None
    limit: str | None = None
    warmup_rounds: int = 0
    stable: bool = True
    note: str = ""
    extra: Json = field(default_factory=dict)
    openings: tuple[int, ...] = ()

    @cached_property
    def summary(self) -> Summary:
        """Medians and percentiles of the samples, in seconds."""
        return summarise(self.samples_s, self.openings)

    def times_over(self, other: Row) -> Interval:
        """How many times as long as another row of the same rounds it took."""
        return paired_ratio(self.samples_s, other.samples_s, self.openings)

    @property
    def per_evaluation_s(self) -> float:
        """The median time of one evaluation of the network for the whole batch."""
        return self.summary.median.value / self.nfe


@dataclass(frozen=True)
class Report:
    """A run. made: UTC, ISO 8601. mode: quick or full. model, machine, settings, limits: what was measured, where, how.

    model: name, digest, trained (whether its weights are), and what else there is to say. settings: price_per_hour and
    currency give every picture its cost. limits: peaks {precision: {gflops, ...}}, bandwidth, work, ... skipped:
    {"what", "reason"} each; what: a suite, a group, a contender or the id of a row, or words.

    sections: facts that are no rows, lists of plain mappings by name; any may be missing, and so may any key:
    quality: contender, solver, steps, nfe, figure (what is measured; more is better), value, baseline (of real
    samples), n. parity_curves: contender, solver, weights, and by step the lists t, prediction_relative_l2,
    drift_max_abs. cold_start: contender, medians import_s, load_s, first_picture_s, total_s, and total_samples_s,
    peak_rss_bytes, artefact_bytes, n, parity (in words). sizes: file, precision, size_bytes. overhead: what, value,
    unit, target. export: what, seconds, size_bytes. crosschecks: row, ours_ms, tool, version, figure_ms, what, parity.
    loadgen: scenario, figure, value, unit, n, label, contender, parity. serving: figure, contender, value, unit, spread
    (lowest and highest of several), target, met, n (requests), remark. serving_trials: contender, rate (requests a
    second), n, late (the share), p50 and p99 (times the latency alone), stopped (as too many were late already).
    serving_steps: batch, step_s (seconds of an engine's call). serving_alone: solver, steps, alone_s.
    """

    name: str
    made: str
    command: str
    mode: str
    model: Json
    machine: Json
    settings: Json
    limits: Json
    rows: tuple[Row, ...] = ()
    skipped: tuple[Json, ...] = ()
    sections: Json = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def group(self, name: str) -> list[Row]:
        """The rows that were timed together."""
        return [row for row in self.rows if row.group == name]

    @property
    def groups(self) -> list[str]:
        """Names of all groups, in the order of their measurement."""
        return list(dict.fromkeys(row.group for row in self.rows))


def of_products(precision: str) -> str:
    """What a precision multiplies in: "int8-bf16" is int8 with its float part in bf16."""
    return precision.partition("-")[0]


def write_report(report: Report, path: Path) -> None:
    """Write report.json. Beside its raw samples each row gets its summary, for readers that are not this package.

    JSON knows no infinity: a figure that is none, which a section may hold, becomes null. Raises ValueError for two
    rows of one id, as `read_report` does.
    """
    _require_own_ids(report.rows, str(path))
    document = asdict(report)
    for row, plain in zip(report.rows, document["rows"], strict=True):
        plain["summary"] = asdict(row.summary)
    path.write_text(json.dumps(_finite(document), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_report(path: Path) -> Report:
    """Read report.json, or that of a folder; ValueError for what is none, or is of another schema."""
    path = path / FILE if path.is_dir() else path
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is no report: {error}; give a report.json that pytest benchmarks/ wrote") from None
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(f"{path}: schema_version: got {version!r}, expected {SCHEMA_VERSION}; measure again")
    plain_rows = document.pop("rows", [])
    if not isinstance(plain_rows, list):
        raise ValueError(f"{path}: rows: got {type(plain_rows).__name__}, expected a list")
    rows = tuple(_row(plain, f"{path}: rows[{i}]") for i, plain in enumerate(plain_rows))
    _require_own_ids(rows, str(path))
    return from_dict(Report, {**document, "rows": rows}, str(path))


def _require_own_ids(rows: Iterable[Row], where: str) -> None:
    twice = [name for name, count in Counter(row.id for row in rows).items() if count > 1]
    if twice:
        raise ValueError(f"{where}: rows: got {twice[0]!r} more than once, expected an id of its own for each")


def _row(plain: Any, where: str) -> Row:
    if not isinstance(plain, dict):
        raise ValueError(f"{where}: got {type(plain).__name__}, expected an object")
    values = {key: value for key, value in plain.items() if key != "summary"}  # made anew from the samples
    if values.get("parity") is not None:
        values["parity"] = from_dict(Parity, values["parity"], f"{where}: parity")
    row = from_dict(Row, values, where)
    if row.kind not in KINDS or not row.samples_s:
        raise ValueError(f"{where}: got kind {row.kind!r}, {len(row.samples_s)} samples, expected one of {KINDS}")
    if not all(0 < seconds < math.inf for seconds in (*row.samples_s, *row.openings, row.batch, row.nfe)):
        raise ValueError(
            f"{where}: samples_s, openings, batch, nfe: got one that is not a positive number; measure again"
        )
    try:
        check_openings(row.openings, len(row.samples_s))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return row


def _finite(value: Any) -> Any:
    """Plain JSON values; numpy's numbers become Python's, infinities and NaN become None."""
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    plain = value.item() if hasattr(value, "item") else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain
