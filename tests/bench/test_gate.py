"""The gate: a slow-down of a tenth is caught, unchanged code passes, and nothing passes because it vanished."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from reports import MACHINE, MODEL, STEP_MS, make_rows, small_report

from ddpm_deploy.bench.gate import (
    BETTER,
    GONE,
    NEW,
    NO_ANCHOR,
    NOISY,
    SAME,
    SKIPPED,
    WORSE,
    LogRatio,
    compare,
    fails,
    parse_tolerance,
    pooled,
    tells,
    unseen,
    verdict_of,
    warnings,
)  # fmt: skip
from ddpm_deploy.bench.record import OWN, PEER, Report
from ddpm_deploy.bench.report.terminal import comparison_lines
from ddpm_deploy.bench.statistics import Interval

OURS, TWIN, ANCHOR = "onnxruntime fp32", "onnxruntime fp32 (twin)", "ONNX Runtime, plain export"
TRIALS = 10
LAYOUT = 0.01  # how much one program's speed differs from process to process


def run(seed: int, slowdown: float = 0.0, *, rounds: int = 400, cv: float = 0.05, layout: float = LAYOUT) -> Report:
    """A run of the subset of the gate: two groups of one own contender, its twin and a peer, on a drifting machine."""
    rng = np.random.default_rng(seed)
    rows = []
    for batch, n in ((1, rounds), (8, rounds // 2)):
        times = {OURS: 1 + slowdown, TWIN: 1 + slowdown, ANCHOR: 1.0}
        ms = {name: STEP_MS[name][batch] * part * np.exp(rng.normal(0, layout)) for name, part in times.items()}
        rows += make_rows(
            "step", f"one evaluation, batch {batch}", ms, batch=batch, rounds=n, cv=cv, drifting=0.1, rng=rng
        )
    rows = [replace(row, samples_s=tuple(s * rng_machine(seed) for s in row.samples_s)) for row in rows]
    return Report("subset", "", "", "quick", dict(MODEL), dict(MACHINE), {}, {}, tuple(rows))


def rng_machine(seed: int) -> float:
    """How fast the whole machine is in this run; cancels."""
    return float(np.random.default_rng(seed + 10**6).uniform(0.7, 1.4))


def without(report: Report, drop: Callable[..., bool], **changes: object) -> Report:
    return replace(report, rows=tuple(row for row in report.rows if not drop(row)), **changes)


def verdicts(old: Report, new: Report, **options: object) -> dict[str, str]:
    return {change.row: change.verdict for change in compare(old, new, **options)}


@pytest.mark.parametrize(("rounds", "cv"), [(200, 0.08), (400, 0.05)])
def test_slowdown_of_a_tenth_is_caught_and_unchanged_code_passes(rounds: int, cv: float) -> None:
    caught = alarms = 0
    for trial in range(TRIALS):
        base, same = (run(10 * trial + k, rounds=rounds, cv=cv) for k in (1, 2))
        slowed = run(10 * trial + 3, 0.10, rounds=rounds, cv=cv)
        alarms += fails(compare(base, same, 0.05))
        caught += fails(compare(base, slowed, 0.05))
    assert caught >= 9
    assert alarms <= 1


def test_speed_up_is_better_and_lets_the_gate_pass() -> None:
    changes = compare(run(1), run(2, -0.15))
    assert {change.verdict for change in changes} == {BETTER}
    assert not fails(changes)


def test_slowed_machine_is_no_slowdown() -> None:
    slower = replace(run(1), rows=tuple(replace(r, samples_s=tuple(3 * s for s in r.samples_s)) for r in run(1).rows))
    assert all(change.ratio.value == pytest.approx(1.0) for change in compare(run(1), slower))


def test_only_the_row_that_got_slower_is_called_worse() -> None:
    old, new = small_report(1), small_report(2, {"openvino fp32": 1.3})
    worse = {name for name, verdict in verdicts(old, new).items() if verdict == WORSE}
    assert worse == {name for name in verdicts(old, new) if "openvino fp32" in name}


def test_slowdown_that_no_group_can_show_shows_in_all_of_them_together() -> None:
    noise = {"rounds": 60, "cv": 0.2}
    found = verdicts(small_report(2, **noise), small_report(502, {"torch fp32": 1.105}, **noise))
    *alone, together = (verdict for name, verdict in found.items() if "torch fp32" in name)
    assert set(alone) == {NOISY}
    assert together == WORSE


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (Interval(1.10, 1.04, 1.16), WORSE),
        (Interval(1.10, 0.99, 1.22), NOISY),  # not surely slower
        (Interval(1.04, 1.03, 1.05), SAME),  # surely slower, within the tolerance
        (Interval(1.05, 1.04, 1.06), SAME),  # not beyond the tolerance
        (Interval(0.90, 0.85, 0.95), BETTER),
        (Interval(0.96, 0.95, 0.97), SAME),
        (Interval(1.00, 0.96, 1.04), SAME),
        (Interval(1.00, 0.90, 1.11), NOISY),
    ],
)
def test_verdict_takes_both_the_tolerance_and_the_interval(change: Interval, verdict: str) -> None:
    assert verdict_of(change, 0.05) == verdict


def test_tolerance_decides() -> None:
    old, new = run(1, layout=0), run(2, 0.10, layout=0)
    assert fails(compare(old, new, 0.05))
    assert not fails(compare(old, new, 0.20))


def test_row_that_vanished_fails_unless_its_absence_has_a_reason() -> None:
    old = small_report(1)
    gone = without(small_report(2), lambda row: row.contender == "openvino fp32")
    assert verdicts(old, gone)["one evaluation, batch 8 / openvino fp32"] == GONE
    assert fails(compare(old, gone))
    for what in ("openvino fp32", "one evaluation, batch 8 / openvino fp32"):
        excused = replace(gone, skipped=({"what": what, "reason": "not installed"},))
        (change,) = (c for c in compare(old, excused) if c.row == "one evaluation, batch 8 / openvino fp32")
        assert (change.verdict, change.reason) == (SKIPPED, "not installed")


def test_row_with_other_work_under_the_same_name_is_not_compared() -> None:
    old, new = run(1), run(2)
    new = replace(new, rows=tuple(replace(row, nfe=2) if row.kind == OWN else row for row in new.rows))
    changes = compare(old, new)
    assert [change.verdict for change in changes] == [GONE, GONE, NEW, NEW]
    assert fails(changes)


def test_rows_that_were_left_out_on_purpose_are_not_missed() -> None:
    old = small_report(1)
    part = without(small_report(2), lambda row: row.batch != 8 or row.contender.startswith("openvino"))
    wanted = {row.id for row in part.rows}
    assert fails(compare(old, part))
    changes = compare(old, part, only=wanted)
    assert {change.row for change in changes} == {row.id for row in part.rows if row.kind == OWN}
    assert not fails(changes)


def test_new_row_is_told_and_passes() -> None:
    old = without(small_report(1), lambda row: row.contender == "openvino fp32")
    found = verdicts(old, small_report(2))
    assert found["one evaluation, batch 1 / openvino fp32"] == NEW


def test_without_a_peer_in_both_nothing_is_compared_and_the_gate_says_so() -> None:
    changes = compare(run(1), without(run(2), lambda row: row.kind == PEER))
    assert {change.verdict for change in changes} == {NO_ANCHOR}
    assert not tells(changes)
    assert tells(compare(run(1), run(2)))


def test_noise_that_hides_a_slowdown_is_told_with_its_size() -> None:
    old, new = run(1, rounds=20, cv=0.4), run(2, rounds=20, cv=0.4)
    changes = compare(old, new)
    assert {change.verdict for change in changes} == {NOISY}
    missed = unseen(changes)
    assert missed > 0.05
    assert f"less than {missed:.1%} may pass unseen" in "\n".join(comparison_lines(old, new, changes))
    assert unseen(compare(run(1, layout=0), run(2, layout=0))) is None


def test_deadlines_are_left_out_as_their_contenders_took_turns() -> None:
    ms = {OURS: 1.0, ANCHOR: 1.2}

    def with_ticks(report: Report, seed: int, slowdown: float) -> Report:
        late = {**ms, OURS: slowdown, f"torch fp32 {seed}": 3.0}
        ticks = make_rows("deadline", "one evaluation every 20 ms", late, rng=np.random.default_rng(seed))
        return replace(report, rows=(*report.rows, *ticks))

    old, new = run(1), run(2)
    assert compare(with_ticks(old, 3, 1.0), with_ticks(new, 4, 2.0)) == compare(old, new)
    assert warnings(with_ticks(old, 3, 1.0), with_ticks(new, 4, 2.0)) == []


def test_anchor_can_be_named() -> None:
    old, new = small_report(1), small_report(2)
    assert {c.anchors for c in compare(old, new, anchor="torch.compile fp32")} == {("torch.compile fp32",)}
    assert {c.verdict for c in compare(old, new, anchor="nobody")} == {NO_ANCHOR}


def test_several_peers_are_one_anchor_by_their_geometric_mean() -> None:
    """One of two peers twice as slow: the row is 1 / sqrt(2) of what it was against both."""
    ms = {OURS: 1.0, "diffusers eager fp32": 5.0, ANCHOR: 1.2}
    old, new = (
        replace(run(1), rows=tuple(make_rows("step", "g", ms, rounds=50, cv=0.0, rng=np.random.default_rng(0))))
        for _ in range(2)
    )
    slower = [_times(row, 2.0) if row.contender == ANCHOR else row for row in new.rows]
    (change,) = compare(old, replace(new, rows=tuple(slower)))
    assert change.anchors == ("diffusers eager fp32", ANCHOR)
    assert change.ratio.value == pytest.approx(1 / np.sqrt(2))


def _times(row, load):
    return replace(row, samples_s=tuple(float(s) for s in np.array(row.samples_s) * load))


def test_copies_of_one_program_that_differ_widen_every_interval() -> None:
    """A change that is no change: as far as our twins are apart in both runs."""
    old, new = run(1, layout=0), run(2, layout=0)
    apart = [replace(report, rows=tuple(_spoilt(row) for row in report.rows)) for report in (old, new)]
    calm, wide = compare(old, new)[0].ratio, compare(*apart)[0].ratio
    assert wide.high / wide.low > 1.1 * calm.high / calm.low


def _spoilt(row):
    return replace(row, samples_s=tuple(1.1 * s for s in row.samples_s)) if row.contender == TWIN else row


def test_reports_of_different_models_are_refused() -> None:
    other = replace(run(2), model={**MODEL, "digest": "sha256:0"})
    with pytest.raises(ValueError, match="model: digest: got sha256:0, expected sha256:6f1d0c2e9b"):
        compare(run(1), other)


@pytest.mark.parametrize(("text", "expected"), [("5%", 0.05), (" 12.5 % ", 0.125), ("0.05", 0.05)])
def test_tolerance_is_a_percentage_or_a_fraction(text: str, expected: float) -> None:
    assert parse_tolerance(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "much", "5", "0%", "-5%", "100%", "nan", "inf%", "5%%"])
def test_what_is_no_tolerance_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="tolerance: got"):
        parse_tolerance(text)


@pytest.mark.parametrize("tolerance", [0.0, 1.0, -0.1])
def test_compare_refuses_a_tolerance_out_of_range(tolerance: float) -> None:
    with pytest.raises(ValueError, match="tolerance"):
        compare(run(1), run(2), tolerance)


def test_pooling_weighs_by_precision() -> None:
    found = pooled([LogRatio(0.10, 0.01), LogRatio(0.00, 0.04)])
    assert found.value == pytest.approx(0.08)
    assert found.variance == pytest.approx(0.008)


def test_other_neighbours_in_a_group_are_warned_of() -> None:
    old = small_report(1)
    new = without(small_report(2), lambda row: row.batch == 8 and row.contender == "torch fp32")
    assert warnings(old, new) == ["one evaluation, batch 8: timed beside others than before: torch fp32"]


def test_warnings_name_what_differs_and_nothing_that_passes() -> None:
    old = run(1)
    busy = {**MACHINE, "load_average": [9.0, 9.0, 9.0], "git": {"commit": "f" * 16, "dirty": True}}
    assert warnings(old, replace(old, machine=busy)) == []
    moved = replace(old, mode="full", machine={**MACHINE, "threads": 8}, settings={"device": "cpu"})
    assert warnings(old, moved) == [
        "mode: quick before, full now", "machine: threads: 2 before, 8 now", "settings: device: none before, cpu now"
    ]  # fmt: skip
