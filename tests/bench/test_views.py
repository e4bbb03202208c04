"""What follows from a report: known times in, the right winners, factors and reservations out."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reports import (
    BY_HAND,
    CHAIN,
    CHOICE,
    COMPILED,
    EAGER,
    STEP_MS,
    choice_rows,
    full_report,
    make_rows,
    small_report,
)

from benchmarks import targets
from ddpm_deploy.bench.record import OWN, PEER, Parity, Report, Row
from ddpm_deploy.bench.report.document import text_of
from ddpm_deploy.bench.report.gains import EQUAL, as_good, gains, lost
from ddpm_deploy.bench.report.markdown import to_markdown
from ddpm_deploy.bench.report.summary import summary
from ddpm_deploy.bench.report.tables import suite_table, winners_table, without_empty
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
from ddpm_deploy.bench.statistics import paired_ratio

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


def test_rows_that_took_turns_at_a_rate_are_not_paired() -> None:
    ms = {ORT: 1.2, "onnxruntime fp32 (twin)": 1.2, EAGER: 7.3}
    rows = make_rows("deadline", "one evaluation every 20 ms", ms, rng=np.random.default_rng(0))
    assert twins(replace(small_report(), rows=tuple(rows))) == []
    assert (winner(rows).eager, winner(rows).strongest) == (None, None)


def test_heads_name_the_precision_of_the_peers(report: Report) -> None:
    assert {"over eager fp32>", "over torch.compile fp32>"} <= set(winners_table(report).columns)


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


def with_choice(report: Report) -> Report:
    """With a group that has the slow way, the few-step peer and ours in the same rounds."""
    return replace(report, rows=(*report.rows, *choice_rows(np.random.default_rng(3))))


def pictures(value: float) -> dict[str, Any]:
    """The quality of pictures that are all alike."""
    return {"value": value, "samples": [value] * 500}


def with_quality(report: Report, value: float) -> Report:
    """With that value of every picture in twelve evaluations."""
    judged = [{**fact, **pictures(value)} if fact["nfe"] == 12 else fact for fact in report.sections["quality"]]
    return replace(report, sections={**report.sections, "quality": judged})


def test_counted_gain_is_the_product_of_its_factors_and_called_counted(report: Report) -> None:
    gain = next(one for one in gains(report) if one.row.nfe == 12)
    assert gain.fewer == pytest.approx(1000 / 12)
    assert gain.total.value == pytest.approx(gain.fewer * gain.faster.speed_up.value)
    assert "mean top probability 0.874 against 0.880 of ddpm with 1000 evaluations" in gain.quality
    assert re.fullmatch(r"1000/12 = 83\.3x × [\d.]+x = \d+x", gain.in_words)
    assert gain.over == f"ddpm with 1000 evaluations at the pace of {EAGER}; counted, not timed in the same rounds"


def test_gain_that_was_timed_in_the_same_rounds_is_that_ratio_and_its_two_factors(report: Report) -> None:
    gain = next(one for one in gains(with_choice(report)) if one.row.group == CHOICE)
    rows = with_choice(report).group(CHOICE)
    slow, few, ours = (row_of(rows, name) for name in (CHAIN, BY_HAND, ORT))
    assert gain.total == paired_ratio(slow.samples_s, ours.samples_s)
    assert gain.fewer == paired_ratio(slow.samples_s, few.samples_s).value == pytest.approx(6000 / 87.84, rel=0.05)
    assert gain.faster.speed_up == paired_ratio(few.samples_s, ours.samples_s)
    assert gain.fewer * gain.faster.speed_up.value == pytest.approx(gain.total.value, rel=0.05)


def test_summary_leads_with_the_gain_that_was_timed_and_names_what_it_is_over(report: Report) -> None:
    sentence = said(with_choice(report), "A picture:")
    assert re.search(r"4\d\dx \[\d+, \d+\] ≈ [67]\d\.\dx × [56]\.\d+x", sentence)
    assert f"over {CHAIN} (ddpm with 1000 evaluations), timed in the same rounds" in sentence


def test_baseline_of_another_solver_is_named_as_that_one(report: Report) -> None:
    quality = (fact for fact in report.sections["quality"] if fact["figure"] == "mean top probability")
    kept = [fact for fact in quality if fact["solver"] != "ddpm"]
    sentence = said(replace(report, sections={"quality": kept}), "A picture:")
    assert f"over ddim with 50 evaluations at the pace of {EAGER}; counted" in sentence
    assert f"{EAGER} with 50" not in sentence


def test_times_of_different_groups_make_no_ratio(report: Report) -> None:
    """The slow way of another group is no measurement beside ours, however near."""
    alone = [row for row in choice_rows(np.random.default_rng(3)) if row.contender == CHAIN]
    apart = replace(report, rows=(*report.rows, *(replace(row, group="elsewhere") for row in alone)))
    assert all(gain.whole is None for gain in gains(apart))
    assert "end to end" not in to_markdown(apart)


@pytest.mark.parametrize("timed", [False, True])
def test_fewer_evaluations_of_worse_pictures_are_no_gain(report: Report, timed: bool) -> None:
    groups = (CHOICE,) if timed else ("unipc, 12 evaluations, batch 1",)
    rows = tuple(row for row in with_choice(report).rows if row.group in groups)
    bad = with_quality(replace(report, rows=rows), 0.55)
    (gain,) = gains(bad)
    assert (gain.fewer, gain.total, gain.whole) == (None, None, None)
    assert "quality 0.550 against 0.880 of ddpm with 1000 evaluations" in gain.why_not
    assert "fewer evaluations are not claimed: quality 0.550 against 0.880" in said(bad, "A picture:")
    assert "fewer evaluations are not claimed: quality 0.550" in to_markdown(bad)


@pytest.mark.parametrize(("loss", "claimed"), [(-0.1, True), (0.9 * EQUAL, True), (1.1 * EQUAL, False)])
def test_quality_may_be_worse_by_less_than_the_constant(report: Report, loss: float, claimed: bool) -> None:
    assert as_good(pictures(0.88 - loss), pictures(0.88)) is claimed
    assert not as_good({"value": 0.88 - loss}, {"value": 0.88})  # of other pictures nothing is known
    facts = [fact for fact in report.sections["quality"] if fact["figure"] == "mean top probability"]
    near = with_quality(replace(report, sections={"quality": facts}), 0.88 - loss)
    assert all((gain.fewer is not None) is claimed for gain in gains(near) if gain.row.nfe == 12)


def test_an_uncertain_loss_of_quality_claims_nothing(report: Report) -> None:
    """Both means are equal; only with enough pairs is it known that little was lost."""
    noise = np.random.default_rng(0).normal(0, 0.2, (2, 2000))
    ours, theirs = 0.88 + noise - noise.mean(axis=1, keepdims=True)
    few, many = (
        [{"value": 0.88, "samples": list(v[:n] - v[:n].mean() + 0.88)} for v in (ours, theirs)] for n in (20, 2000)
    )
    assert not as_good(*few)
    assert as_good(*many)
    assert lost(*many).value == pytest.approx(0, abs=1e-9)


def test_baseline_claims_no_gain_over_itself(report: Report) -> None:
    gain = next(one for one in gains(report) if one.row.nfe == 1000)
    assert (gain.fewer, gain.total, gain.whole) == (None, None, None)
    assert gain.in_words.endswith("at equal evaluations")


def test_random_weights_claim_no_fewer_evaluations(report: Report) -> None:
    random = replace(report, model={**report.model, "trained": False})
    assert all(gain.fewer is None and "random" in gain.why_not for gain in gains(random))
    assert "fewer evaluations are not claimed: the weights are random" in said(random, "A picture:")
    assert "nothing of pictures" in said(random, "Parity:")


@pytest.mark.parametrize("solver", ["ddpm", "unipc"])
def test_fewer_evaluations_are_no_gain_where_the_quality_of_either_is_unknown(report: Report, solver: str) -> None:
    kept = [entry for entry in report.sections["quality"] if entry["solver"] != solver]
    gain = next(g for g in gains(replace(report, sections={"quality": kept})) if g.row.solver == "unipc")
    if solver == "unipc":
        assert gain.why_not == "the quality of unipc with 12 evaluations in fp32 was not measured"
    else:
        assert gain.slow["nfe"] == 50  # held against the most evaluations that were judged
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
    empty = replace(small_report(), rows=(), sections={})
    assert "Nothing was timed" in said(empty, "Measured:")
    assert "none" in said(empty, "Winner:")


def test_run_of_sections_alone_has_no_winner_to_speak_of() -> None:
    report = replace(small_report(), rows=(), sections={"serving": ({"figure": "alone", "value": 1.0},)})
    lines = [text_of(line) for line in summary(report)]
    assert [line.partition(":")[0] for line in lines] == ["Measured", "Skipped"]
    assert "What it measured is below" in lines[0]


def test_run_without_twins_admits_it() -> None:
    rows = tuple(row for row in small_report().rows if row.kind in (OWN, PEER))
    assert "cannot tell noise from effect" in said(replace(small_report(), rows=rows), "Noise:")


def test_worst_parity_of_each_precision_is_told(report: Report) -> None:
    bad = changed(report, "openvino fp32", parity=Parity({"relative_l2": 5e-5}, "", "trained"))
    assert "fp32 relative L2 5.0e-05 (openvino fp32); int8 relative L2 1.1e-01" in said(bad, "Parity:")


def test_ticks_of_a_deadline_are_no_rounds(report: Report) -> None:
    measured = said(report, "Measured:")
    assert re.search(r"rows of 10 to 100 interleaved rounds each; 2 rows of 600 ticks each", measured)
    assert "ticks" not in said(small_report(), "Measured:")
    late = replace(report, rows=tuple(row for row in report.rows if row.suite == "deadline"))
    assert "interleaved" not in said(late, "Measured:")


def test_rows_skipped_for_one_reason_are_told_once_and_shortly(report: Report) -> None:
    why = f"openvino: cpu does not compute in bf16: got {'FP32, ' * 30}expected BF16; use precision 'fp32'"
    rows = ("step[openvino-bf16-b1]", "sampling[openvino-int8-bf16-b16-unipc12-any]", "parity[openvino-bf16-b2-ddim50]")
    skipped = tuple({"what": what, "reason": why} for what in rows)
    many = replace(report, skipped=(*skipped, {"what": "a cross-check", "reason": "no such tool; get it"}))
    sentence = said(many, "Skipped:")
    assert sentence.count("cpu does not compute in bf16") == 1
    assert "3 rows of openvino bf16, openvino int8-bf16: cpu does not compute in bf16: got FP32" in sentence
    assert "a cross-check: no such tool." in sentence
    assert len(sentence) < 200
    assert to_markdown(many).count("use precision 'fp32'") == 3


def test_rows_that_are_not_to_be_quoted_are_counted_by_reason(report: Report) -> None:
    rows = tuple(replace(row, stable=row.suite != "step") for row in report.rows)
    sentence = said(replace(report, rows=rows), "Not to be quoted:")
    assert "27 still warming up;" in sentence
    assert re.search(r"; \d too noisy \(.*labels, batch 1 / onnxruntime fp32", sentence)


# -- the targets ------------------------------------------------------------------------------------------------------


def with_bench_names(report: Report, **values: float) -> Report:
    """The group of a thousand or twelve, with the quality of both."""
    facts = [
        {"solver": solver, "nfe": nfe, **pictures(values[solver])} for solver, nfe in (("ddpm", 1000), ("unipc", 12))
    ]
    return replace(with_choice(report), sections={"quality": facts})


def line_of(report: Report, begins: str) -> str:
    (found,) = (line for line in targets.table(report, report).splitlines() if line.startswith(f"| {begins}"))
    return found


@pytest.mark.parametrize(
    ("ddpm", "unipc", "quality", "verdict"),
    [
        (0.88, 0.875, "equal quality: unipc 12 0.875, ddpm 1000 0.880", "| reached |"),
        (0.88, 0.55, "quality not equal: unipc 12 0.550, ddpm 1000 0.880", "| **missed** |"),
        (0.55, 0.88, "quality not equal: unipc 12 0.880, ddpm 1000 0.550", "| reached |"),
    ],
)
def test_thousand_evaluations_are_beaten_by_pictures_as_good_only(
    report: Report, ddpm: float, unipc: float, quality: str, verdict: str
) -> None:
    line = line_of(with_bench_names(report, ddpm=ddpm, unipc=unipc), "digits")
    assert quality in line
    assert line.endswith(verdict)
    assert ("equal quality" in line) == (quality.startswith("equal"))


def test_thousand_evaluations_without_quality_reach_nothing(report: Report) -> None:
    line = line_of(replace(with_choice(report), sections={}), "digits")
    assert "quality of both was not measured" in line
    assert line.endswith("| not measured here |")


def test_target_reached_by_a_row_that_is_not_to_be_quoted_says_so(report: Report) -> None:
    figure = "best fp32 step against diffusers eager fp32, batch 1 "
    assert line_of(report, figure).endswith("| reached |")
    assert line_of(changed(report, ORT, stable=False), figure).endswith("| reached, but still warming up |")
    assert line_of(changed(report, EAGER, stable=False), figure).endswith("| reached, but still warming up |")


def test_tables_go_between_the_marks_of_a_page_and_leave_the_rest_alone(report: Report, tmp_path: Path) -> None:
    page, (begin, end) = tmp_path / "page.md", targets.MARKS
    page.write_text(f"before\n{begin}\nold figures\n{end}\nafter\n")
    for _ in range(2):
        targets.into(page, targets.page(report, report))
    text = page.read_text()
    assert text.startswith(f"before\n{begin}\n")
    assert text.endswith(f"{end}\nafter\n")
    assert "old figures" not in text
    assert text.count("| figure | target |") == 1
    assert text.count("#### one evaluation, batch 1") == 2
    with pytest.raises(ValueError, match="expected the lines"):
        targets.into(_without_marks(tmp_path), "tables")


def test_cold_starts_are_compared_start_by_start(report: Report) -> None:
    parity = "relative L2 1e-06 (trained)"
    ours = {"contender": "onnxruntime fp32", "parity": parity, "total_s": 0.5, "peak_rss_bytes": 2**26}
    ours["total_samples_s"] = [0.4, 0.5, 2.0]
    theirs = {"contender": "diffusers", "total_s": 5.0, "peak_rss_bytes": 2**28, "total_samples_s": [4.0, 5.0, 20.0]}
    started = replace(report, sections={"cold_start": [ours, theirs]})
    line = line_of(started, "cold start")
    assert "0.10x (0.5 of 5 s)" in line
    assert parity in line
    assert "0.25x (64 of 256 MiB)" in line_of(started, "peak memory")


def _without_marks(folder: Path) -> Path:
    path = folder / "other.md"
    path.write_text("nothing\n")
    return path
