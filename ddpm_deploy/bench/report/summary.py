"""The report in ten sentences, for a reader who has one minute and doubts."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ddpm_deploy.bench.record import OWN, Report, Row
from ddpm_deploy.bench.report import words
from ddpm_deploy.bench.report.document import Line, Strong
from ddpm_deploy.bench.report.gains import Gain, gains
from ddpm_deploy.bench.report.views import (
    DEADLINE,
    FULL,
    Against,
    Winner,
    by_batch,
    deadline_twins,
    eligible,
    flags,
    groups_of,
    is_trained,
    main_suite,
    samples_per_s,
    twins,
    winners,
)

NAMED = 4  # things that a sentence names before it counts the others
REASON = 100  # letters of a reason; all of it stands in the section of what was skipped
RANDOM = "random weights"
CONTENDER = re.compile(r"([^-\[\]]+)-(fp32|fp16|bf16|int8(?:-bf16)?)-b\d+")  # within the id of a row


def summary(report: Report) -> list[Line]:
    """What was measured, who won by how much, and everything that speaks against it."""
    parts: tuple[Callable[[Report], list[Line]], ...] = (
        _measured, _winners, _picture, _parity, _limit, _noise, _noisy, _skipped,
    )  # fmt: skip
    if not report.rows and report.sections:
        parts = (_measured, _skipped)
    return [line for part in parts for line in part(report)]


def model_in_words(report: Report) -> str:
    """`digits, trained weights`."""
    name = str(report.model.get("name", "unnamed model")).removesuffix(f", {RANDOM}")
    return f"{name}, {'trained weights' if is_trained(report) else RANDOM}"


def device_in_words(machine: Mapping[str, Any]) -> str:
    """The processor and the threads used, and the GPUs."""
    cpu, gpus = machine.get("cpu"), machine.get("gpus") or ()
    model = (cpu.get("model") if isinstance(cpu, Mapping) else cpu) or "an unknown processor"
    threads = machine.get("threads")
    used = "" if threads is None else f" with {threads} thread{'' if threads == 1 else 's'}"
    names = [str(gpu.get("name")) if isinstance(gpu, Mapping) else str(gpu) for gpu in gpus]
    return ", ".join([f"{model}{used}", *names])


def some(names: list[str]) -> str:
    """The first few names, and how many more."""
    names = list(dict.fromkeys(names))
    more = len(names) - NAMED
    return "; ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def comparison(found: Against, *, strongest: bool = False) -> str:
    """`6.13x [6.03, 6.18] as fast as diffusers eager fp32`; a loss is called one."""
    name = f"{'the strongest peer, ' if strongest else ''}{found.other.contender}"
    speed = words.times_interval(found.speed_up)
    if found.speed_up.high < 1:
        return f"SLOWER than {name}: {speed}"
    if found.speed_up.low <= 1:
        return f"not told apart from {name}: {speed}"
    return f"{speed} as fast as {name}"


def _measured(report: Report) -> list[Line]:
    ticks = [row for row in report.rows if row.suite == DEADLINE]
    rounds = [row for row in report.rows if row.suite != DEADLINE]
    kinds = ((rounds, "interleaved rounds each"), (ticks, "ticks each, at a fixed rate"))
    rows = "; ".join(f"{len(found)} rows of {_span(found)} {what}" for found, what in kinds if found)
    most = max((len(row.openings) for row in rounds), default=0)
    rows += f", over {most} openings of each contender where that is possible" if most > 1 else ""
    head = f"{model_in_words(report)}, on {device_in_words(report.machine)}; a {report.mode} run of {report.made}."
    return [
        (
            Strong("Measured: "),
            f"{head} {rows}. All were correct to their budgets before they were timed."
            if report.rows
            else f"{head} {'What it measured is below' if report.sections else 'Nothing was timed'}.",
        )
    ]


def _span(rows: Sequence[Row]) -> str:
    """`20 to 150`, the fewest samples and the most."""
    counts = [row.summary.n for row in rows]
    return " to ".join(str(n) for n in dict.fromkeys((min(counts), max(counts))))


def _winners(report: Report) -> list[Line]:
    batches = by_batch(report)
    if not batches:
        return [(Strong("Winner: "), "none; no row of ours had its parity measured.")]
    ends = dict.fromkeys((min(batches), max(batches)))
    return [_winner(one) for batch in ends for one in winners(batches[batch])]


def _winner(best: Winner) -> Line:
    row = best.row
    what = "" if row.precision == FULL else f" in {row.precision}"
    again = {best.eager and best.eager.other.id, best.compiled and best.compiled.other.id}
    strongest = None if best.strongest is None or best.strongest.other.id in again else best.strongest
    said = [comparison(found) for found in (best.eager, best.compiled) if found is not None]
    said += [comparison(strongest, strongest=True)] if strongest is not None else []
    said += [f"not told apart from our {some(list(best.level_with))}"] if best.level_with else []
    time = f"{words.duration_interval(row.summary.median)}, {words.number(samples_per_s(row))} samples/s"
    parity = words.parity(row.parity)
    return (
        Strong(f"Batch {row.batch}{what}: "),
        f"{row.contender} is our fastest: {time}, {parity}; {'; '.join(said) or 'no peer was timed beside it'}.",
    )


def _picture(report: Report) -> list[Line]:
    found = [gain for gain in gains(report) if gain.row.precision == FULL] or gains(report)
    if not found:
        return []
    best = max(found, key=_claim)
    row = best.row
    drawn = f"a sample by {row.solver} with {row.nfe} evaluations, batch {row.batch}, {row.contender}"
    strongest = "" if best.strongest is None else f"; {comparison(best.strongest, strongest=True)}"
    if best.why_not:
        said = f"{best.in_words} over {best.over}{strongest}; fewer evaluations are not claimed: {best.why_not}"
        return [(Strong("A picture: "), f"{drawn}: {said}.")]
    factors = f"{best.in_words}, fewer evaluations × faster evaluations, over {best.over}{strongest}"
    return [(Strong("A picture: "), f"{drawn}: {factors}. Quality: {best.quality}.")]


def _claim(gain: Gain) -> tuple[bool, bool, float, float]:
    """What was timed as a whole before what was counted, then the largest total at the smallest batch."""
    total = gain.total or gain.faster.speed_up
    return gain.total is not None, gain.whole is not None, -gain.row.batch, total.value


def _parity(report: Report) -> list[Line]:
    ours = [row for row in eligible(report.rows) if row.suite == main_suite(report)]
    worst: dict[str, Row] = {}
    for row in ours:
        known = worst.get(row.precision)
        if known is None or (words.parity_error(row.parity) or 0) > (words.parity_error(known.parity) or 0):
            worst[row.precision] = row
    if not worst:
        return [(Strong("Parity: "), "not measured.")]
    said = [f"{precision} {words.parity(row.parity)} ({row.contender})" for precision, row in worst.items()]
    warning = "" if is_trained(report) else " On random weights it says that programs agree, nothing of pictures."
    return [(Strong("Parity: "), f"worst of our rows against the float32 reference: {'; '.join(said)}.{warning}")]


def _limit(report: Report) -> list[Line]:
    said = []
    for batch, rows in by_batch(report).items():
        known = [row for row in rows if row.kind == OWN and row.percent_of_limit is not None]
        best = max(known, key=lambda row: row.percent_of_limit or 0, default=None)
        if best is not None:
            of = f" of {best.limit}" if best.limit else ""
            said.append(f"{words.percent(best.percent_of_limit)}{of} at batch {batch} ({best.contender})")
    return [(Strong("Of the machine's limit: "), f"{'; '.join(said) or 'not measured'}.")]


def _noise(report: Report) -> list[Line]:
    found = twins(report)
    if not found:
        return [(Strong("Noise: "), "no row was timed twice, so this run cannot tell noise from effect.")]
    worst = max(found, key=lambda twin: abs(twin.ratio.value - 1))
    covered = sum(twin.ratio.covers(1) for twin in found)
    head = f"two copies of one program differ by {words.deviation(worst.ratio)} at worst ({worst.row.group})"
    many = f"; {covered} of {len(found)} such intervals cover zero" if len(found) > 1 else ""
    apart = deadline_twins(report)
    ticks = (
        f"; at a fixed rate, where contenders take turns, their medians by {words.percent(100 * apart)}"
        if apart
        else ""
    )
    return [(Strong("Noise: "), f"{head}{many}{ticks}. Smaller differences than that mean nothing.")]


def _noisy(report: Report) -> list[Line]:
    bad: dict[str, list[str]] = {}
    for row in report.rows:
        if flags(row):
            bad.setdefault(flags(row).replace(", ", " and "), []).append(row.id)
    count = f"{sum(map(len, bad.values()))} of {len(report.rows)} rows"
    said = "; ".join(f"{len(ids)} {reason}{_named(ids)}" for reason, ids in bad.items())
    return [(Strong("Not to be quoted: "), f"{count}: {said}." if bad else "none.")]


def _named(ids: Sequence[str]) -> str:
    """The names where they are few; more of them stand in their tables."""
    return f" ({'; '.join(ids)})" if len(ids) <= NAMED else ""


def _skipped(report: Report) -> list[Line]:
    reasons: dict[str, list[str]] = {}
    for entry in report.skipped:
        reasons.setdefault(_short(str(entry.get("reason"))), []).append(str(entry.get("what")))
    said = [_left_out(names, reason) for reason, names in reasons.items()]
    suites = sum(1 for suite in dict.fromkeys(row.suite for row in report.rows) for _ in groups_of(report, suite))
    return [(Strong("Skipped: "), f"{some(said)}." if said else f"nothing; groups timed: {suites}.")]


def _short(reason: str) -> str:
    """Up to its first semicolon, and no longer than `REASON`."""
    return textwrap.shorten(reason.partition(";")[0], REASON, placeholder=" …")


def _left_out(names: Sequence[str], reason: str) -> str:
    """`8 rows of openvino bf16: cpu does not compute in bf16`, or a single thing by its name."""
    found = [CONTENDER.search(name) for name in names]
    rows = list(dict.fromkeys(f"{one[1].replace('_', ' ')} {one[2]}" for one in found if one is not None))
    if len(names) == 1 or None in found:
        return f"{some(list(names))}: {reason}"
    return f"{len(names)} rows of {', '.join(rows)}: {_without_backend(rows, reason)}"


def _without_backend(rows: Sequence[str], reason: str) -> str:
    """A reason that begins with the name just said, without it."""
    backends = {name.partition(" ")[0] for name in rows}
    return reason.removeprefix(f"{backends.pop()}: ") if len(backends) == 1 else reason
