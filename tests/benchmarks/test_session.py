"""A small session of the benchmarks, from outside: what pytest-benchmark stores is what the report stores."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness import Bench, Trial
from benchmarks.specs import Options, Spec, may_skip, name_of
from ddpm_deploy.bench.record import Report, read_report, write_report
from ddpm_deploy.errors import BackendUnavailable, ParityError

ROOT = Path(__file__).parents[2]
STEP = Spec("step", "one evaluation", "openvino", "fp32", 1)


def pytest_in_benchmarks(
    *arguments: str, timeout_s: float = 250, **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}  # no worker of ours
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, env={**own, **environment}
    )


@pytest.fixture(scope="module")
def session(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("session")
    done = pytest_in_benchmarks(
        "benchmarks/bench_step.py", "-k", "(onnxruntime or diffusers) and fp32", "--model", str(tiny_bundle),
        "--batches", "2", "--threads", "1", "--report", str(folder / "report"),
        f"--benchmark-json={folder / 'benchmark.json'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    stored = json.loads((folder / "benchmark.json").read_text())
    return read_report(folder / "report" / "report.json"), stored, done.stdout


def test_stored_figures_are_the_samples_of_the_report(session: tuple[Report, dict[str, Any], str]) -> None:
    report, stored, _ = session
    assert len(stored["benchmarks"]) == 2
    for benchmark in stored["benchmarks"]:
        (row,) = [row for row in report.rows if benchmark["name"] == f"test_{row.id}"]
        assert benchmark["stats"]["data"] == pytest.approx(list(row.samples_s), abs=1e-9)
        assert benchmark["group"] == row.group
        assert benchmark["extra_info"]["parity"] == pytest.approx(dict(row.parity.figures))


def test_every_row_has_parity_a_twin_and_the_command_that_repeats_it(
    session: tuple[Report, dict[str, Any], str],
) -> None:
    report, _, _ = session
    assert {row.kind for row in report.rows} == {"own", "peer", "twin"}
    assert len({len(row.samples_s) for row in report.rows}) == 1
    for row in report.rows:
        assert row.parity is not None
        assert row.command.startswith("pytest 'benchmarks/bench_step.py::test_step[")
        assert row.percent_of_limit > 0


def test_report_and_its_summary_are_told_at_the_end(session: tuple[Report, dict[str, Any], str]) -> None:
    _, _, printed = session
    assert "report.html" in printed
    assert "onnxruntime fp32" in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--backends", "cuda"), "--backends: got 'cuda', expected some of torch, onnxruntime, openvino"),
        (("--batches", "1,x"), "--batches: got '1,x', expected numbers such as 1,8"),
        (("--threads", "0"), "--threads: got 0, expected 1 to "),
        (("--rate-hz", "-5"), "--rate-hz: got -5, expected a number above 0"),
        (("--model", "cifar10", "--checkpoint", "no/such"), "--checkpoint: no/such: there is no such file or folder"),
        (("--gate", "no/such.json"), "--gate: no/such.json: No such file or directory"),
        (("--quick", "--full"), "--quick, --full: got both, expected one"),
        (("--tolerance", "much"), "tolerance"),
        (("--model", "no/such/folder"), "no/such/folder"),
    ],
)
def test_wrong_option_is_one_line(arguments: tuple[str, ...], said: str) -> None:
    done = pytest_in_benchmarks("benchmarks/bench_step.py", *arguments)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_absence_is_a_reason_to_skip_unless_the_backend_is_demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = BackendUnavailable("openvino: not installed")
    monkeypatch.delenv("DDPM_TEST_BACKENDS", raising=False)
    assert may_skip(STEP, absent)
    monkeypatch.setenv("DDPM_TEST_BACKENDS", "onnxruntime,openvino")
    assert not may_skip(STEP, absent)


def test_parity_over_budget_is_never_skipped() -> None:
    bench = Bench(Options())
    assert bench.skip_reason(STEP, ParityError("over budget")) is None
    assert bench.skip_reason(STEP, BackendUnavailable("not installed")) == "not installed"
    assert bench.skipped == {"step[openvino-fp32-b1]": "not installed"}


SUITES = ("step", "sampling", "deadline", "parity", "quality", "cold")
TIMED = SUITES[:3]
EVERY_RUN = [Options(model, full=full, device=device) for model in ("digits", "cifar10", "celebahq256")
             for full in (False, True) for device in ("cpu", "cuda")]  # fmt: skip


def specs_of(suites: Sequence[str], options: Options) -> list[Spec]:
    return [spec for suite in suites for spec in importlib.import_module(f"benchmarks.bench_{suite}").specs(options)]


@pytest.mark.parametrize("options", EVERY_RUN, ids=lambda o: f"{o.model}-{'full' if o.full else 'quick'}-{o.device}")
def test_every_row_has_an_id_of_its_own(options: Options) -> None:
    ids = [spec.id for spec in specs_of(SUITES, options)]
    assert len(ids) == len(set(ids)) > 0


@pytest.mark.parametrize("options", EVERY_RUN, ids=lambda o: f"{o.model}-{'full' if o.full else 'quick'}-{o.device}")
def test_what_is_timed_together_has_names_of_its_own(options: Options) -> None:
    names = [(spec.suite, spec.group, name_of(spec)) for spec in specs_of(TIMED, options)]
    assert len(names) == len(set(names)) > 0


def test_report_of_a_selection_does_not_replace_that_of_all(tmp_path: Path) -> None:
    """And a gate is not measured against its own folder."""
    report = tmp_path / "report.json"
    write_report(Report("a", "2026-01-01T00:00:00Z", "pytest", "quick", {}, {}, {}, {}), report)
    done = pytest_in_benchmarks("benchmarks/bench_step.py", "--gate", str(report), "--report", str(tmp_path))
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "would replace that one" in done.stderr


def test_what_breaks_a_group_is_found_once(tiny_bundle: Path) -> None:
    bench, specs, calls = Bench(Options(model=str(tiny_bundle))), {STEP: "a"}, []

    def build(spec: Spec, bench: Bench) -> Trial:
        calls.append(spec)
        raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            bench.row(STEP, specs, build, lambda contenders: {})
    assert len(calls) == 1
