"""The GPU program on a CPU: the whole of it in rehearsal, and its parts on made-up facts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from benchmarks.gpu import paths, peers
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.asked import FULL, Asked, Group
from benchmarks.gpu.busy import covered
from benchmarks.gpu.clock import Clock, OutOfTime
from benchmarks.gpu.device_facts import FIELDS, parse_facts, parse_processes, parse_reasons, slowed, snapshot
from benchmarks.gpu.models import exported, torch_model
from benchmarks.gpu.parity import OVER, over_budget
from benchmarks.gpu.run import Run, contenders
from benchmarks.gpu.skipping import without_folders
from benchmarks.gpu.subject import Subject
from benchmarks.gpu.table import BUSY, figures, table
from ddpm_deploy.bench.record import OWN, PEER, TWIN, Parity, Report, Row, read_report
from ddpm_deploy.bench.report.write import write_pages
from ddpm_deploy.errors import ParityError
from ddpm_deploy.parity.budget import budget_for
from ddpm_deploy.schedule import NoiseSchedule

ROOT = Path(__file__).parents[2]
GROUP = Group("digits", "unipc", 4, 2, "fp32")
SMI = "700.00, 71.25, 1980, 1980, 2619, 2619, 34, 1024, Enabled, 0, Disabled, 0x0000000000000004"


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path, str]:
    out = tmp_path_factory.mktemp("gpu") / "report.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return read_report(out), out.parent, done.stdout


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Any:
    subject = Subject(torch_model("digits", tmp_path_factory.mktemp("models")), "cpu")
    yield subject
    subject.close()


# -- the rehearsal ----------------------------------------------------------------------------------------------------


def test_rehearsal_times_ours_its_twin_and_a_peer_at_both_batches(rehearsal: tuple[Report, Path, str]) -> None:
    report, _, _ = rehearsal
    assert {row.batch for row in report.rows} == {1, 2}
    for name in report.groups:
        rows = report.group(name)
        assert {row.kind for row in rows} == {OWN, PEER, TWIN}
        assert len({len(row.samples_s) for row in rows}) == 1
        assert {"torch fp32", "torch fp32 (twin)"} <= {row.contender for row in rows}


def test_rehearsal_judges_every_row_before_it_is_timed(rehearsal: tuple[Report, Path, str]) -> None:
    for row in rehearsal[0].rows:
        assert row.parity is not None
        assert row.parity.figures["final_max_abs"] <= 1e-4
        assert row.parity.figures["judged_l2"] <= min(1e-5, row.parity.figures["relative_l2"])


def test_rehearsal_names_every_missing_runtime_with_its_reason(rehearsal: tuple[Report, Path, str]) -> None:
    skipped = {entry["what"]: entry["reason"] for entry in rehearsal[0].skipped}
    for runtime in ("tensorrt", "tensorrt-rtx"):
        assert any(f"[{runtime}-fp32-b1" in what and "1 more" in what and reason for what, reason in skipped.items())
    assert all("tensorrt" in what.lower() or "ONNX_Runtime" in what for what in skipped), skipped


def test_rehearsal_has_facts_of_the_cpu_and_none_of_a_gpu(rehearsal: tuple[Report, Path, str]) -> None:
    report, _, _ = rehearsal
    assert report.settings["device"] == "cpu"
    assert report.limits["peaks"]["fp32"]["gflops"] > 0
    assert not report.limits[BUSY]
    assert not report.sections["gpu"]
    invariance = report.settings["batch invariance"]
    assert set(invariance) == {"digits: torch fp32", "digits: onnxruntime fp32"}
    assert invariance["digits: onnxruntime fp32"]["slot"]
    assert invariance["digits: onnxruntime fp32"]["max-abs across batches"] == {"batch 2": 0.0}


def test_table_is_the_last_thing_that_a_run_prints(rehearsal: tuple[Report, Path, str]) -> None:
    report, _, output = rehearsal
    assert output.rstrip().endswith(table(report))


def test_pages_of_a_run_can_be_rendered(rehearsal: tuple[Report, Path, str]) -> None:
    report, folder, _ = rehearsal
    pages = write_pages(report, folder)
    text = pages[0].read_text()
    assert "digits batch 1 against eager" in text
    assert all(page.stat().st_size > 1000 for page in pages)


# -- what a run leaves out --------------------------------------------------------------------------------------------


def begun(tmp_path: Path, digits: Subject, **settings: Any) -> Run:
    found = Run(Asked(tmp_path / "report.json", rehearse=True, **settings), lambda text: None)
    found._subjects["digits"] = digits
    return found


def only(monkeypatch: pytest.MonkeyPatch, *own: str) -> None:
    monkeypatch.setattr(paths, "OWN", own)
    monkeypatch.setattr(peers, "peers_of", lambda group, compiles: {})


def test_missing_runtime_is_skipped_with_its_reason(
    tmp_path: Path, digits: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, "onnxruntime", "no such runtime")
    run = begun(tmp_path, digits)
    run._measure(GROUP)
    assert {row.contender for row in run.findings.rows} == {"onnxruntime fp32", "onnxruntime fp32 (twin)"}
    ((what, reason),) = run.findings.skipped.items()
    assert "no_such_runtime" in what
    assert "no such runtime" in reason


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("/data/some.where/digits: has no step", "digits: has no step"),
        ("cannot open '/a/b-c/libx.so.9', see https://example.org/docs/page", "cannot open 'libx.so.9', see "
         "https://example.org/docs/page"),
        ("1/2 of state/x0", "1/2 of state/x0"),
    ],
)  # fmt: skip
def test_reason_of_a_skip_names_no_folder(text: str, kept: str) -> None:
    assert without_folders(text) == kept


def test_path_out_of_its_parity_budget_is_not_timed(
    tmp_path: Path, digits: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, "onnxruntime", "torch")
    open_own = paths.open_own

    def wrong(contender: str, group: Group, subject: Subject, *, twin: bool = False) -> paths.Path:
        path = open_own(contender, group, subject, twin=twin)
        return replace(path, draw=lambda: path.draw() + 0.01) if contender == "torch" else path

    monkeypatch.setattr("benchmarks.gpu.run.open_own", wrong)
    run = begun(tmp_path, digits)
    run._measure(GROUP)
    assert "torch fp32" not in {row.contender for row in run.findings.rows}
    (reason,) = run.findings.skipped.values()
    assert reason.startswith(OVER)
    assert "final_max_abs is 0.01, expected at most 0.0001" in reason


def test_wrong_network_is_caught_by_a_single_step(digits: Subject) -> None:
    path = paths.open_own("onnxruntime", GROUP, digits)
    evaluate = path.evaluate
    assert evaluate is not None
    wrong = replace(path, evaluate=lambda feeds: evaluate(feeds) * np.float32(1.001))
    digits.reference.judge(path, "fp32", GROUP.batch)
    with pytest.raises(ParityError, match=r"judged_l2 is 0\.001"):
        digits.reference.judge(wrong, "fp32", GROUP.batch)


def test_nan_is_over_every_budget() -> None:
    nan = float("nan")
    assert len(over_budget({"judged_l2": nan, "relative_l2": 0.0}, budget_for("fp32"))) == 1
    assert len(over_budget({"final_psnr_db": nan}, budget_for("bf16"))) == 1


def test_group_that_does_not_fit_into_the_time_is_skipped(
    tmp_path: Path, digits: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, "onnxruntime")
    run = begun(tmp_path, digits, minutes=1e-6)
    run._measure(GROUP)
    assert not run.findings.rows
    assert all("give more --minutes" in reason for reason in run.findings.skipped.values())
    run._measure_if_it_fits(GROUP)
    assert run.findings.untimed == [GROUP]


def test_clock_knows_what_things_have_cost() -> None:
    now = [0.0]
    clock = Clock(100.0, lambda: now[0])
    with clock.spending("compile", 60.0):
        now[0] = 40.0
    with clock.spending("compile", 99.0):
        now[0] = 70.0
    with pytest.raises(OutOfTime, match="about 30 s, with 30 s left, of which it may take 10%"), \
            clock.spending("compile", 1.0, 0.1):  # fmt: skip
        pytest.fail("it was begun all the same")
    with pytest.raises(OutOfTime, match="about 50 s, with 30 s left"), clock.spending("compile", 1.0, keep_s=20.0):
        pytest.fail("it was begun all the same")


def test_what_torch_compile_took_for_one_is_expected_of_the_next(
    tmp_path: Path, digits: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, now = begun(tmp_path, digits, minutes=8), [0.0]
    run.clock = Clock(480.0, lambda: now[0])
    group = replace(GROUP, compiled=True)
    with run._spending(group.spec(peers.OUR_COMPILED, PEER), group):
        now[0] = 300.0
    with pytest.raises(OutOfTime, match="about 300 s, with 180 s left"), \
            run._spending(group.spec(paths.COMPILED), group):  # fmt: skip
        pytest.fail("it was begun all the same")


def test_first_group_compiles_nothing_so_that_there_is_a_report_soon() -> None:
    first = next(FULL[0].groups())
    assert not first.compiled
    assert any(group.compiled for group in FULL[0].groups())


# -- peers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["unipc", "ddim", "ddpm"])
def test_host_loop_without_diffusers_draws_the_pictures_of_the_reference(digits: Subject, solver: str) -> None:
    group = replace(GROUP, solver=solver, steps=5)
    path = peers.open_rows(group, digits, compile_it=False)
    parity = digits.reference.judge(path, "fp32", group.batch)
    assert parity.figures["final_max_abs"] < 1e-4
    assert "diffusers is not installed" in path.note


def test_ddpm_in_a_loop_of_diffusers_draws_the_pictures_of_the_reference(digits: Subject) -> None:
    pytest.importorskip("diffusers", reason="its loop")
    bundle = digits.model.bundle
    short = replace(bundle.manifest, schedule=NoiseSchedule.linear(20, 1e-3, 0.2))
    subject = Subject(replace(digits.model, bundle=replace(bundle, manifest=short)), "cpu")
    group = replace(GROUP, solver="ddpm", steps=20)
    path = peers.peers_of(group, compiles=False)[peers.PIPELINE](group, subject)
    loop = peers.open_loop(group, subject, step=peers.EAGER)
    for one in (path, loop, loop):
        assert subject.reference.judge(one, "fp32", group.batch).figures["final_max_abs"] < 1e-4
    assert np.abs(path.draw() - loop.draw()).max() > 0.1  # each from its own noise
    with pytest.raises(ParityError):
        subject.reference.judge(replace(loop, noise=path.noise), "fp32", group.batch)


@pytest.mark.parametrize(
    ("solver", "precision", "plain"),
    [("unipc", "fp32", 3), ("ddim", "fp16", 3), ("ddpm", "bf16", 2), ("unipc", "tf32", 0)],
)
def test_every_solver_is_held_against_plain_exports_and_torch_compile(solver: str, precision: str, plain: int) -> None:
    pytest.importorskip("diffusers", reason="its peers")
    found = list(peers.peers_of(replace(GROUP, solver=solver, precision=precision), compiles=True))
    assert found[0] == (peers.PIPELINE if solver == "ddpm" else peers.EAGER_LOOP)
    assert found[-1] == peers.COMPILED_LOOP
    assert sum("plain export" in name for name in found) == plain


def test_without_diffusers_the_names_of_the_peers_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    assert list(peers.peers_of(GROUP, compiles=True)) == [peers.OUR_EAGER, peers.OUR_COMPILED]


def test_twin_follows_ours_and_what_compiles_comes_last(digits: Subject) -> None:
    kinds = [(spec.kind, spec.contender) for spec, _ in contenders(GROUP, digits, rehearse=False)]
    assert kinds[0] == (OWN, "torch")
    assert (TWIN, "torch") in kinds
    assert kinds[-1] == (OWN, paths.COMPILED)


def test_full_run_asks_for_every_solver_at_every_batch_in_every_precision_once(tmp_path: Path) -> None:
    asked = Asked(tmp_path / "report.json").groups()
    solvers = (("ddpm", 1000), ("ddim", 50), ("unipc", 12))
    batches, precisions = (1, 8, 64, 256), ("fp32", "tf32", "bf16", "fp16")
    ids = [group.spec("torch").id for group in asked]
    assert len(ids) == len(set(ids))
    assert {(g.model, g.solver, g.steps, g.batch, g.precision) for g in asked} == {
        (model, *solver, batch, precision)
        for model in ("cifar10", "digits") for solver in solvers for batch in batches for precision in precisions
    }  # fmt: skip
    assert [(g.model, g.solver, g.batch) for g in (asked[0], asked[2])] == [("cifar10", "unipc", n) for n in (1, 256)]
    assert any(group.compiled for group in asked)


# -- the table --------------------------------------------------------------------------------------------------------


def made_up_row(group: Group, contender: str, ms: float, kind: str = OWN, **settings: Any) -> Row:
    spec = group.spec(contender, kind)
    parity = Parity({"final_psnr_db": 60.0}, "bf16: final PSNR at least 30 dB", "trained")
    return Row(spec.id, "sampling", spec.group, spec.label, kind, spec.precision, spec.batch, 12, (ms / 1e3,) * 20,
               "", spec.solver, parity, **settings)  # fmt: skip


def made_up_report(busy: Any = None, skipped: tuple[Any, ...] = ()) -> Report:
    one, large = (Group("cifar10", "unipc", 12, batch, "bf16") for batch in (1, 256))
    rows = (
        made_up_row(one, "torch", 10.0),
        made_up_row(one, "onnxruntime", 20.0),
        made_up_row(one, peers.EAGER_LOOP, 70.0, PEER),
        made_up_row(one, peers.COMPILED_LOOP, 12.0, PEER),
        made_up_row(large, "torch", 200.0, percent_of_limit=47.5),
        made_up_row(large, peers.COMPILED_LOOP, 190.0, PEER, percent_of_limit=50.0),
    )
    limits = {BUSY: busy or {}}
    return Report("gpu", "2026-11-24T00:00:00+00:00", "", "full", {}, {}, {}, limits, rows, skipped)


def test_table_holds_the_best_of_ours_against_the_peers_of_the_same_precision() -> None:
    found = {figure.what: figure for figure in figures(made_up_report())}
    eager = found["cifar10 batch 1 against eager, bf16"]
    assert (eager.ok, eager.by, eager.value) == (True, "torch bf16", "7.00x [7.00, 7.00], unipc 12")
    compiled = found["cifar10 batch 1 against torch.compile, bf16"]
    assert (compiled.ok, compiled.verdict) == (False, "MISSED")
    assert found["cifar10 batch 256 against torch.compile, bf16"].ok is False
    assert found["cifar10 batch 256, of the bf16 matrix peak"].value == "47.5 %"
    assert found["pictures against float32"].ok is True


def test_table_says_what_was_not_measured_and_why() -> None:
    entry = {"what": "sampling[diffusers_eager_loop-bf16-b1-unipc12-digits]", "reason": "diffusers: not installed; ..."}
    report = made_up_report(skipped=(entry,))
    found = {figure.what: figure for figure in figures(report)}
    assert found["digits batch 1 against eager"].value == "diffusers: not installed"
    assert found["wall over device-busy, batch 1"].verdict == "not measured"
    lines = table(report).splitlines()
    assert lines[0].split() == ["figure", "target", "measured", "by", "verdict"]
    assert len(lines) == 2 + len(found)


def test_table_reads_the_kernels_of_a_trace_before_the_events() -> None:
    busy = {
        "cifar10: torch bf16": {"wall_over_kernels": 1.02, "wall_over_events": 1.5, "wall_over_span": 1.01},
        "cifar10: onnxruntime fp16": {"wall_over_events": 1.2},
    }
    found = {figure.what: figure for figure in figures(made_up_report(busy))}
    first, second = (found[f"{path}: wall over device-busy"] for path in busy)
    assert (first.ok, first.by, first.value) == (True, "kernels", "1.020, 1.010 over the span")
    assert (second.ok, second.by) == (False, "events")


def test_contender_over_its_budget_is_a_missed_target() -> None:
    over = {"what": "sampling[torch-bf16-b1-unipc12-cifar10]", "reason": f"{OVER}: final_psnr_db is 20"}
    (found,) = [f for f in figures(made_up_report(skipped=(over,))) if f.what == "pictures against float32"]
    assert found.ok is False
    assert "torch-bf16-b1" in found.value


def test_loop_that_the_host_drives_is_no_clean_result() -> None:
    report = made_up_report()
    noted = tuple(replace(row, note="the loop is driven by the host: no bindings") for row in report.rows)
    (found,) = [f for f in figures(replace(report, rows=noted)) if f.what == "cifar10 batch 1 against eager, bf16"]
    assert found.verdict == "reached, but the host drives its loop"


# -- nvidia-smi -------------------------------------------------------------------------------------------------------


def test_line_of_nvidia_smi_is_read() -> None:
    facts = parse_facts(SMI + "\n", list(FIELDS.values()))
    assert facts is not None
    assert (facts["power_cap_w"], facts["sm_clock_mhz"], facts["ecc"]) == (700.0, 1980.0, "Enabled")
    assert facts["throttle"] == ["software power cap"]


@pytest.mark.parametrize("text", ["", "no devices were found", SMI.replace("34, ", ""), "N/A"])
def test_other_text_of_nvidia_smi_is_no_line(text: str) -> None:
    assert parse_facts(text, list(FIELDS.values())) is None


def test_unknown_cells_of_nvidia_smi_are_none() -> None:
    facts = parse_facts("[N/A], Disabled", ["power.limit", "ecc.mode.current"])
    assert facts == {"power_cap_w": None, "ecc": "Disabled"}


@pytest.mark.parametrize(
    ("mask", "reasons"),
    [("0x0000000000000000", []), ("0x0000000000000001", ["idle"]), ("0x24", ["software power cap",
     "software thermal slowdown"]), ("0x400", ["0x400"]), ("Not Active", None)],
)  # fmt: skip
def test_mask_of_clock_reasons_is_named(mask: str, reasons: list[str] | None) -> None:
    assert parse_reasons(mask) == reasons


def test_idle_is_not_what_slowed_a_gpu_down() -> None:
    assert slowed([{"throttle": ["idle"]}, {"throttle": None}, {"throttle": ["hardware slowdown", "idle"]}]) == [
        "hardware slowdown"
    ]


def test_processes_are_counted_and_not_named() -> None:
    assert parse_processes("1234, 512\n99, 1024\n") == {"count": 2, "memory_mib": 1536.0}
    assert parse_processes("1234, [N/A]\n") == {"count": 1, "memory_mib": 0.0}
    assert parse_processes("") == {"count": 0, "memory_mib": 0.0}


def test_driver_that_knows_an_older_name_is_asked_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def old_driver(command: list[str]) -> str | None:
        asked = command[2].partition("=")[2]
        known = {"power.limit": "300.00", "clocks_throttle_reasons.active": "0x1", "pid,used_memory": ""}
        return known.get(asked)

    monkeypatch.setattr("benchmarks.gpu.device_facts.run_quietly", old_driver)
    facts = snapshot("cuda", "before")
    assert facts == {
        "when": "before", "power_cap_w": 300.0, "throttle": ["idle"], "processes": {"count": 0, "memory_mib": 0.0}
    }  # fmt: skip


@pytest.mark.parametrize(
    ("shown", "device", "card"),
    [
        (("GPU-third", "GPU-first"), "cuda", "GPU-third"),
        (("GPU-third", "GPU-first"), "cuda:1", "GPU-first"),
        ((), "cuda:1", "1"),
        (("GPU-third", ""), "cuda:1", "1"),
    ],
)
def test_facts_are_of_the_card_that_cuda_shows(
    shown: tuple[str, ...], device: str, card: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/asked\ncase "$2" in *pid*) ;; *) echo "{SMI}" ;; esac\n')
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("benchmarks.gpu.device_facts.visible_uuids", lambda: shown)
    facts = snapshot(device, "before")
    assert facts is not None
    assert facts["power_cap_w"] == 700.0
    assert set((tmp_path / "asked").read_text().split()) == {f"--id={card}"}


def test_no_facts_of_a_cpu() -> None:
    assert snapshot("cpu", "before") is None


def test_overlapping_kernels_count_once() -> None:
    assert covered([(0, 2), (1, 3), (1.5, 1.6), (5, 6)]) == 4


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], "--minutes: got 0, expected more than 0"),
        (["--models", "cifar"], "--models: got 'cifar', expected some of cifar10, digits"),
        (["--rehearse", "--precisions", "bf16"], "in which nothing is measured"),
    ],
)
def test_wrong_arguments_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path / "report.json"), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_preparing_measures_nothing(tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path / "report.json"), "--rehearse", "--prepare"]) == 0
    assert not (tmp_path / "report.json").exists()


@pytest.mark.parametrize(
    ("targets", "precisions", "graphs"),
    [
        (("onnxruntime-cuda",), ("bf16", "fp16"), ("fp32", "fp16")),
        (("tensorrt",), ("bf16", "tf32"), ("fp32", "bf16")),
    ],
)
def test_graphs_are_written_for_those_who_read_them(
    targets: tuple[str, ...], precisions: tuple[str, ...], graphs: tuple[str, ...]
) -> None:
    assert exported(targets, precisions) == graphs


def test_machine_without_a_gpu_is_told_of_the_rehearsal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unseen: Callable[[], bool] = lambda: False  # noqa: E731
    monkeypatch.setattr("torch.cuda.is_available", unseen)
    assert main(["--out", str(tmp_path / "report.json")]) == 2
    assert "--rehearse" in capsys.readouterr().err
