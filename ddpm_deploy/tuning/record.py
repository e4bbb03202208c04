"""What was measured and chosen, as one JSON file; whatever does not fit is refused, so that it is measured again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ddpm_deploy.strict import from_dict
from ddpm_deploy.tuning.question import Candidate, Question

FORMAT = 1
MEMBERS = ("format", "key", "verdicts", "unavailable", "buckets", "unmeasured")

Key = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """A candidate on the bundle's recorded reference. reason: why it does not take part, None where it does.

    relative_l2: of the worst single evaluation. final_max_abs, final_psnr_db: of the samples; null for equal ones.
    """

    backend: str
    precision: str
    device: str
    threads: int | None
    reason: str | None = None
    relative_l2: float | None = None
    final_max_abs: float | None = None
    final_psnr_db: float | None = None

    @property
    def candidate(self) -> Candidate:
        """Of what it is."""
        return Candidate(self.backend, self.precision, self.device, self.threads)


@dataclass(frozen=True)
class Bucket:
    """One batch size. chosen: a label. ms: medians by label. ratios: the time over the fastest one's, round by round.

    slower: those of the first look only, who were far from the fastest there, by how many times. failed: the reason of
    those that could not compute this batch.
    """

    batch: int
    chosen: str
    ms: Mapping[str, float]
    ratios: Mapping[str, float]
    slower: Mapping[str, float]
    failed: Mapping[str, str]


@dataclass(frozen=True)
class Record:
    """key: what it holds for. unavailable: backends that cannot be had, with the reason. unmeasured: batch sizes that
    were left out, as too long or too large; the largest bucket serves them."""

    key: Key
    verdicts: tuple[Verdict, ...]
    unavailable: Mapping[str, str]
    buckets: tuple[Bucket, ...]
    unmeasured: tuple[int, ...] = ()

    def choices(self) -> dict[int, Candidate]:
        """The candidate of each bucket."""
        candidates = {verdict.candidate.label: verdict.candidate for verdict in self.verdicts if not verdict.reason}
        return {bucket.batch: candidates[bucket.chosen] for bucket in self.buckets}

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"format": FORMAT, **asdict(self)}


def read_record(data: bytes, key: Key, question: Question) -> Record:
    """The record in a file; ValueError where it is damaged, of another key, or answers another question."""
    value = json.loads(data.decode("utf-8"))
    if not isinstance(value, dict) or sorted(value) != sorted(MEMBERS) or value["format"] != FORMAT:
        raise ValueError(f"is no record of format {FORMAT}")
    if value["key"] != json.loads(json.dumps(key)):
        raise ValueError("was made for another bundle, machine or version")
    record = Record(
        key,
        tuple(from_dict(Verdict, verdict, "verdicts") for verdict in value["verdicts"]),
        _texts(value["unavailable"], "unavailable"),
        tuple(_bucket(bucket) for bucket in value["buckets"]),
        tuple(int(batch) for batch in value["unmeasured"]),
    )
    _check_choices(record, question)
    return record


def _bucket(value: Any) -> Bucket:
    bucket = from_dict(Bucket, value, "buckets")
    numbers = [*bucket.ms.values(), *bucket.ratios.values(), *bucket.slower.values()]
    if bucket.batch < 1 or any(type(number) not in (int, float) for number in numbers):
        raise ValueError(f"buckets: got {value!r}, expected a batch size and numbers")
    _texts(bucket.failed, "failed")
    return bucket


def _texts(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError(f"{where}: got {value!r}, expected texts by name")
    return value


def _check_choices(record: Record, question: Question) -> None:
    passed = {verdict.candidate.label: verdict.candidate for verdict in record.verdicts if not verdict.reason}
    if not record.buckets or len({bucket.batch for bucket in record.buckets}) < len(record.buckets):
        raise ValueError("buckets: expected at least one, all of different batch sizes")
    for bucket in record.buckets:
        if bucket.chosen not in passed or not question.admits(passed[bucket.chosen]):
            raise ValueError(f"buckets: {bucket.chosen!r} may not be chosen")
        if bucket.chosen not in bucket.ms:
            raise ValueError(f"buckets: {bucket.chosen!r} was not timed at batch {bucket.batch}")
