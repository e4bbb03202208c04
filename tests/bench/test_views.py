"""What follows from a report: known times in, the right winners, factors and reservations out."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from reports import COMPILED, EAGER, STEP_MS, full_report, make_rows, small_report

from ddpm_deploy.bench.record import OWN, PEER, Parity, Report, Row
from ddpm_deploy.bench.report.document import text_of
from ddpm_deploy.bench.report.gains import gains
from ddpm_deploy.bench.report.summary import summary
from ddpm_deploy.bench.report.tables import suite_table, without_empty
from ddpm_deploy.bench.report.views import (
    against,
    by_batch,
    cost_per_1000,
    flags,
    samples_per_s,
    twins,
    winner,
    winners,
)  # fmt: skip

ORT, INT8, PLAIN_ORT = "onnxruntime fp32", "onnxruntime int8", "ONNX Runtime, plain export"


@pytest.fixture(scope="module")
def report() -> Report:
    return full_report()


def row_of(rows: Any, contender: str) -> Row:
    (found,) = (row for row in rows if row.contender == contender)
    return found


def changed(report: Report, contender: str, **changes: Any) -> Report:
    rows = (replace(row, **changes) if row.contender == contender else row for row in report.rows)
    return replace(report, rows=tuple(rows))


def said(report: Report, begins: str) -> str:
    """The sentence of the summary that begins so."""
    (found,) = (text_of(line) for line in summary(report) if text_of(line).startswith(begins))
    return found


# -- winners ----------------------------------------------------------------------------------------------------------


def test_speed_up_over_a_peer_is_the_true_one_within_its_interval(report: Report) -> None:
    for batch in (1, 8, 32):
        rows = report.group(f"one evaluation, batch {batch}")
        found = against(row_of(rows, ORT), row_of(rows, EAGER))
        truth = STEP_MS[EAGER][batch] / STEP_MS[ORT][batch]
        assert found.speed_up.value == pytest.approx(truth, rel=0.03)
        assert found.speed_up.low < found.speed_up.value < found.speed_up.high


def test_winner_in_full_precision_stands_before_that_of_all(report: Report) -> None:
    assert [one.row.contender for one in winners(report.group("one evaluation, batch 1"))] == [ORT]
    assert [one.row.contender for one in winners(report.group("one evaluation, batch 32"))] == [ORT, INT8]


def test_winner_names_eager_compiled_and_the_strongest_peer(report: Report) -> None:
    best = winner(report.group("one evaluation, batch 1"))
    assert (best.eager.other.contender, best.compiled.other.contender) == (EAGER, COMPILED)
    assert best.strongest.other.contender == PLAIN_ORT


def test_row_without_parity_never_wins(report: Report) -> None:
    found = winner(changed(report, ORT, parity=None).group("one evaluation, batch 1"))
    assert found.row.contender == INT8
    assert winner([replace(row, parity=None) for row in report.rows]) is None


def test_peer_that_rounds_is_no_peer_of_a_row_that_does_not(report: Report) -> None:
    rows = report.group("one evaluation, batch 1")
    cheat = {"id": "cheat", "contender": "rounding", "precision": "bf16", "samples_s": (1e-6,) * 100}
    assert winner([*rows, replace(row_of(rows, PLAIN_ORT), **cheat)], "fp32").strongest.other.contender == PLAIN_ORT


def test_peer_with_other_evaluations_is_no_peer() -> None:
    rng = np.random.default_rng(0)
    few = make_rows("sampling", "any", {ORT: 1.0}, nfe=12, solver="unipc", rng=rng)
    many = make_rows("sampling", "any", {EAGER: 5.0}, nfe=1000, solver="ddpm", rng=rng)
    assert winner([*few, *many]).eager is None


def test_row_that_cannot_be_told_from_the_winner_is_named() -> None:
    rows = make_rows("step", "g", {ORT: 1.0, "openvino fp32": 1.001, "torch fp32": 2.0}, rng=np.random.default_rng(4))
    best = winner(rows)
    assert {best.row.contender, *best.level_with} == {ORT, "openvino fp32"}


def test_rows_of_unequal_rounds_are_not_compared(report: Report) -> None:
    rows = report.group("one evaluation, batch 1")
    short = replace(row_of(rows, EAGER), samples_s=(0.1,) * 50)
    assert against(row_of(rows, ORT), short) is None


def test_batches_and_twins_are_found(report: Report) -> None:
    assert list(by_batch(report)) == [1, 8, 32]
    assert [twin.original.contender for twin in twins(report)] == [ORT] * 3
    assert all(abs(twin.ratio.value - 1) < 0.03 for twin in twins(report))


def test_twin_that_is_no_twin_shows(report: Report) -> None:
    slow = {"onnxruntime fp32 (twin)": 1.2}
    assert all(twin.ratio.value == pytest.approx(1.2, rel=0.03) for twin in twins(small_report(1, slow)))


def test_throughput_and_cost_follow_from_the_median(report: Report) -> None:
    row = replace(report.rows[0], samples_s=(0.5,) * 10, batch=8, solver="unipc")
    assert samples_per_s(row) == pytest.approx(16.0)
    assert cost_per_1000(report, row) == pytest.approx(0.34 * 1000 / 16 / 3600)
    assert cost_per_1000(small_report(), row) is None
    assert cost_per_1000(report, replace(row, solver=None)) is None


def test_rows_that_are_not_to_be_quoted_say_why(report: Report) -> None:
    row = report.rows[0]
    assert flags(row) == ""
    assert flags(replace(row, samples_s=row.samples_s[:5], stable=False)) == "only 5 rounds, still warming up"
    assert flags(replace(row, samples_s=tuple(np.random.default_rng(0).lognormal(0, 1, 40)))) == "too noisy"


def test_all_rows_of_a_group_stand_in_its_table_fastest_first(report: Report) -> None:
    rows = report.group("one evaluation, batch 8")
    table = suite_table(report, rows)
    medians = [float(cells[2]) for cells in table.rows]
    assert sorted(cells[0] for cells in table.rows) == sorted(row.contender for row in rows)
    assert medians == sorted(medians)
    assert {table.rows[k][0] for k in table.marked} == {ORT, INT8}
    assert without_empty(table) == table


# -- gains ------------------------------------------------------------------------------------------------------------


def test_gain_is_the_product_of_its_factors_and_near_what_was_timed(report: Report) -> None:
    gain = next(one for one in gains(report) if one.row.nfe == 12)
    assert gain.fewer == pytest.approx(1000 / 12)
    assert gain.total.value == pytest.approx(gain.fewer * gain.faster.speed_up.value)
    assert gain.measured == pytest.approx(gain.total.value, rel=0.1)
    assert "mean top probability 0.874, against 0.880 of ddpm with 1000" in gain.quality
    assert re.fullmatch(r"1000/12 = 83\.3x × [\d.]+x = \d+x", gain.in_words)


def test_baseline_claims_no_gain_over_itself(report: Report) -> None:
    gain = next(one for one in gains(report) if one.row.nfe == 1000)
    assert (gain.fewer, gain.total, gain.measured) == (None, None, None)
    assert gain.in_words.endswith("at equal evaluations")


def test_random_weights_claim_no_fewer_evaluations(report: Report) -> None:
    random = replace(report, model={**report.model, "trained": False})
    assert all(gain.fewer is None and "random" in gain.why_not for gain in gains(random))
    assert "fewer are no claim here: the weights are random" in said(random, "A picture:")
    assert "nothing of pictures" in said(random, "Parity:")


@pytest.mark.parametrize("solver", ["ddpm", "unipc"])
def test_fewer_evaluations_are_no_gain_where_the_quality_of_either_is_unknown(report: Report, solver: str) -> None:
    kept = [entry for entry in report.sections["quality"] if entry["solver"] != solver]
    gain = next(g for g in gains(replace(report, sections={"quality": kept})) if g.row.solver == "unipc")
    if solver == "unipc":
        assert gain.why_not == "the quality of unipc with 12 evaluations in fp32 was not measured"
    else:
        assert gain.baseline_nfe == 50  # held against the most evaluations that were judged
    assert gains(replace(report, sections={}))[0].fewer is None


def test_quality_of_full_precision_says_nothing_of_int8(report: Report) -> None:
    rows = tuple(row for row in report.rows if row.contender != ORT or row.suite != "sampling")
    (gain,) = (one for one in gains(replace(report, rows=rows)) if one.row.nfe == 12)
    assert gain.row.contender == INT8
    assert gain.fewer is None


# -- the summary ------------------------------------------------------------------------------------------------------


def test_summary_says_who_won_by_how_much_and_what_speaks_against_it(report: Report) -> None:
    first = said(report, "Batch 1:")
    assert re.search(r"onnxruntime fp32 is our fastest: 1\.\d+ ms \[1\.\d+, 1\.\d+\]", first)
    assert re.search(r"6\.\d\dx \[6\.\d+, 6\.\d+\] as fast as diffusers eager fp32", first)
    assert "the strongest peer, ONNX Runtime, plain export" in first
    assert "labels, batch 1 / onnxruntime fp32" in said(report, "Not to be quoted:")
    assert "no NVIDIA GPU on this machine" in said(report, "Skipped:")
    assert "1000/12 = 83.3x" in said(report, "A picture:")


def test_loss_is_called_one() -> None:
    lost = small_report(1, {ORT: 9.0, "onnxruntime int8": 9.0, "openvino fp32": 9.0, "torch fp32": 9.0})
    assert "SLOWER than diffusers eager fp32: 0." in said(lost, "Batch 1:")


def test_tie_is_called_one() -> None:
    rows = make_rows("step", "g", {ORT: 1.0, EAGER: 1.0}, rng=np.random.default_rng(1))
    assert "not told apart from diffusers eager fp32" in said(replace(small_report(), rows=tuple(rows)), "Batch 1:")


def test_empty_run_is_said_to_be_one() -> None:
    empty = replace(small_report(), rows=())
    assert "Nothing was timed" in said(empty, "Measured:")
    assert "none" in said(empty, "Winner:")


def test_run_without_twins_admits_it() -> None:
    rows = tuple(row for row in small_report().rows if row.kind in (OWN, PEER))
    assert "cannot tell noise from effect" in said(replace(small_report(), rows=rows), "Noise:")


def test_worst_parity_of_each_precision_is_told(report: Report) -> None:
    bad = changed(report, "openvino fp32", parity=Parity({"relative_l2": 5e-5}, "", "trained"))
    assert "fp32 relative L2 5.0e-05 (openvino fp32); int8 relative L2 1.1e-01" in said(bad, "Parity:")
