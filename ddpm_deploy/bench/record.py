"""What a run of the benchmarks leaves: raw samples of every row and what they belong to, as `report.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ddpm_deploy.bench.statistics import Summary, summarise
from ddpm_deploy.strict import from_dict

SCHEMA_VERSION = 1
OWN, PEER, TWIN = "own", "peer", "twin"
KINDS = (OWN, PEER, TWIN)

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
    percent_of_limit: of the hardware's limit, which `limit` names. command: what measures this row alone.
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

    @property
    def summary(self) -> Summary:
        """Medians and percentiles of the samples, in seconds."""
        return summarise(self.samples_s)

    @property
    def per_evaluation_s(self) -> float:
        """The median time of one evaluation of the network for the whole batch."""
        return self.summary.median.value / self.nfe


@dataclass(frozen=True)
class Report:
    """A run. made: UTC, ISO 8601. mode: quick or full. model, machine, settings, limits: what was measured, where, how.

    skipped: {"what", "reason"} each. sections: facts that are no rows, lists of plain mappings by name: parity_curves,
    quality, cold_start, sizes, overhead, export, crosschecks, loadgen.
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


def write_report(report: Report, path: Path) -> None:
    """Write report.json. Beside its raw samples each row gets its summary, for readers that are not this package."""
    document = asdict(report)
    for row, plain in zip(report.rows, document["rows"], strict=True):
        plain["summary"] = asdict(row.summary)
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_report(path: Path) -> Report:
    """Read report.json; ValueError for what is none, or is of a newer schema."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: is no report: {error}; give a report.json that pytest benchmarks/ wrote") from None
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(f"{path}: schema_version: got {version!r}, expected {SCHEMA_VERSION}; measure again")
    rows = tuple(_row(plain, f"{path}: rows[{i}]") for i, plain in enumerate(document.pop("rows", ())))
    return from_dict(Report, {**document, "rows": rows}, str(path))


def _row(plain: Any, where: str) -> Row:
    if not isinstance(plain, dict):
        raise ValueError(f"{where}: got {type(plain).__name__}, expected an object")
    values = {key: value for key, value in plain.items() if key != "summary"}  # made anew from the samples
    if values.get("parity") is not None:
        values["parity"] = from_dict(Parity, values["parity"], f"{where}: parity")
    row = from_dict(Row, values, where)
    if row.kind not in KINDS or not row.samples_s:
        raise ValueError(f"{where}: got kind {row.kind!r}, {len(row.samples_s)} samples, expected one of {KINDS}")
    return row
