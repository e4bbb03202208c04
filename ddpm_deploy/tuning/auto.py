"""The steps together: recall a choice, or measure and remember one; then open what was chosen."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from ddpm_deploy.backends import Backend, available_backends, open_backend
from ddpm_deploy.backends.auto import AutoBackend
from ddpm_deploy.backends.base import one_line
from ddpm_deploy.bundle import Bundle
from ddpm_deploy.errors import DdpmDeployError
from ddpm_deploy.tuning.memory import key_of, one_at_a_time, recall, remember
from ddpm_deploy.tuning.question import Candidate, Question
from ddpm_deploy.tuning.record import Record

BUDGET_S = 1.0
FLOAT32 = Question()

_log = logging.getLogger(__name__)


def open_auto(bundle: Bundle, question: Question) -> AutoBackend:
    """The remembered choice for this bundle on this machine, opened; measured first where there is none.

    Raises BundleError where the bundle records no reference, BackendUnavailable where nothing can be chosen.
    """
    record = recall(key_of(bundle, question), question)
    if record is not None:
        try:
            return open_record(bundle, record)
        except DdpmDeployError as error:
            _log.warning("the remembered choice cannot be opened: %s; measuring again", one_line(error))
    return open_record(bundle, tune(bundle, question, again=record is not None))


def tune(
    bundle: Bundle,
    question: Question = FLOAT32,
    *,
    batches: Sequence[int] | None = None,
    budget_s: float = BUDGET_S,
    again: bool = True,
    tell: Callable[[str], None] = _log.info,
) -> Record:
    """Measure, choose and remember; one process at a time.

    batches: None is 1 to 32, as far as one call takes less than a second. budget_s: seconds of timing for each, after a
    warm-up that takes as long at most. again: measure even if another process has just remembered a choice. tell: gets
    a line before each step.
    """
    key = key_of(bundle, question)
    with one_at_a_time():
        record = None if again else recall(key, question)
        if record is None:
            record = measured(bundle, question, key, batches, budget_s, tell)
            remember(record)
    for line in summary(record):
        _log.info("%s", line)
    return record


def measured(
    bundle: Bundle,
    question: Question,
    key: dict[str, Any],
    batches: Sequence[int] | None,
    budget_s: float,
    tell: Callable[[str], None],
) -> Record:
    """Try all candidates: parity first, then the speed of those within budget."""
    from ddpm_deploy.tuning.trial import buckets_of, judge_all, opener, time_all  # not needed where a choice is known

    found = available_backends()
    unavailable = {name: f"{b.reason}; {b.remedy}" for name, b in found.items() if not b.available}
    verdicts = judge_all(question.candidates(bundle, found), bundle, opener(bundle), tell)
    within = [verdict.candidate for verdict in verdicts if verdict.reason is None]
    timings, unmeasured = time_all(within, bundle.manifest, opener(bundle), batches, budget_s, tell)
    return Record(key, tuple(verdicts), unavailable, buckets_of(timings), tuple(unmeasured))


def open_record(bundle: Bundle, record: Record) -> AutoBackend:
    """Open each chosen candidate once."""
    choices = record.choices()
    with ExitStack() as stack:
        opened: dict[Candidate, Backend] = {}
        for one in dict.fromkeys(choices.values()):
            opened[one] = stack.enter_context(
                open_backend(one.backend, bundle, precision=one.precision, device=one.device, threads=one.threads)
            )
        details = {"choices": {batch: one.label for batch, one in choices.items()}, "why": summary(record)}
        auto = AutoBackend({batch: opened[one] for batch, one in choices.items()}, details)
        stack.pop_all()
    return auto


def summary(record: Record) -> list[str]:
    """A line for each batch size and for each candidate that was left out."""
    lines: list[str] = []
    for bucket in record.buckets:
        others = [f"{label} {ms:.3g} ms" for label, ms in bucket.ms.items() if label != bucket.chosen]
        others += [f"{label} {ratio:.1f}x as slow" for label, ratio in bucket.slower.items()]
        lines.append(f"batch {bucket.batch}: {bucket.chosen}, {bucket.ms[bucket.chosen]:.3g} ms; {', '.join(others)}")
        lines += [f"batch {bucket.batch}: {label} left out: {reason}" for label, reason in bucket.failed.items()]
    lines += [f"{v.candidate.label} left out: {v.reason}" for v in record.verdicts if v.reason]
    return lines + [f"{name} left out: {reason}" for name, reason in record.unavailable.items()]
