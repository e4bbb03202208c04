"""Options of the benchmarks, their session, and the report at its end."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import pytest

from benchmarks.harness import Bench
from benchmarks.models import NETWORKS
from benchmarks.reporting import make_report
from benchmarks.specs import REPORTS, Options, Spec
from ddpm_deploy.backends import BACKENDS
from ddpm_deploy.backends.base import usable_cpus
from ddpm_deploy.bench.gate import compare, fails, parse_tolerance, tells
from ddpm_deploy.bench.record import Report, Row, read_report
from ddpm_deploy.bench.report.terminal import comparison_lines, summary_lines
from ddpm_deploy.bench.report.write import write_all
from ddpm_deploy.bundle import read_bundle
from ddpm_deploy.errors import DdpmDeployError

HERE = Path(__file__).parent
BENCH = pytest.StashKey[Bench]()
GATE = pytest.StashKey[Report | None]()
SELECTED = pytest.StashKey[set[str]]()
SAID = pytest.StashKey[list[str]]()
WRITTEN = pytest.StashKey[list[Path]]()

T = TypeVar("T")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("ddpm-deploy", "what is measured, and the report")
    add = group.addoption
    add("--model", default="digits", help="digits, cifar10, celebahq256, or a bundle's folder (default: digits)")
    add(
        "--checkpoint",
        metavar="PATH",
        help="weights of cifar10 or celebahq256, as diffusers saved them; random if not given",
    )
    add("--backends", metavar="A,B", help=f"own backends to measure, some of {', '.join(BACKENDS)} (default: all)")
    add("--quick", action="store_true", help="short runs, without torch.compile and 1000-step peers (default)")
    add("--full", action="store_true", help="long runs, with torch.compile and the 1000-step peers")
    add("--threads", type=int, default=2, help="threads of every contender (default: 2)")
    add("--device", default="cpu", help="cpu or cuda:N (default: cpu)")
    add("--batches", metavar="1,8", help="batch sizes of single evaluations (default: by the model)")
    add("--rate-hz", type=float, help="of the control loop in bench_deadline (default: by the model)")
    add("--report", metavar="NAME", help="folder under benchmarks/reports, or any (default: the model and mode)")
    add("--price-per-hour", type=float, metavar="PRICE", help="of this machine; adds the cost of 1,000 pictures")
    add("--gate", type=Path, metavar="REPORT.JSON", help="fail where a paired ratio got worse than in that report")
    add("--tolerance", default="5%", help="of the gate (default: 5%%)")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse what is wrong before anything is measured; read the older report before this run may replace it."""
    get = config.getoption
    if get("--quick") and get("--full"):
        raise pytest.UsageError("--quick, --full: got both, expected one")
    _or_usage_error("--tolerance", lambda: parse_tolerance(get("--tolerance")))
    config.stash[GATE] = get("--gate") and _or_usage_error("--gate", lambda: read_report(get("--gate")))
    options = _options(config)
    if get("--gate") and options.report_folder.resolve() in (get("--gate").resolve(), get("--gate").resolve().parent):
        raise pytest.UsageError("--gate: the report of this run would replace that one; give --report another name")
    config.stash[BENCH] = Bench(options, lambda text: print(f"\n{text}", file=sys.stderr, flush=True))


def _options(config: pytest.Config) -> Options:
    get = config.getoption
    batches = _batches(get("--batches"))
    _check_numbers(config, batches)
    model = get("--model")
    if get("--checkpoint") and not Path(get("--checkpoint")).exists():
        raise pytest.UsageError(f"--checkpoint: {get('--checkpoint')}: there is no such file or folder")
    if model not in ("digits", *NETWORKS):
        _or_usage_error("--model", lambda: read_bundle(model))
    return Options(
        model=model,
        checkpoint=get("--checkpoint"),
        backends=_backends(get("--backends")),
        full=get("--full"),
        threads=get("--threads"),
        device=get("--device"),
        batches=batches,
        rate_hz=get("--rate-hz"),
        report_folder=REPORTS / (get("--report") or _report_name(config)),
    )


def _check_numbers(config: pytest.Config, batches: tuple[int, ...] | None) -> None:
    get = config.getoption
    if not 1 <= get("--threads") <= usable_cpus():
        raise pytest.UsageError(f"--threads: got {get('--threads')}, expected 1 to {usable_cpus()}, the usable CPUs")
    if min(batches or (1,)) < 1:
        raise pytest.UsageError("--batches: expected numbers of at least 1")
    for name in ("--rate-hz", "--price-per-hour"):
        value = get(name)
        if value is not None and not 0 < value < math.inf:
            raise pytest.UsageError(f"{name}: got {value:g}, expected a number above 0")


def _report_name(config: pytest.Config) -> str:
    """Of the model and the mode; a selection of tests does not replace the report of all of them."""
    get = config.getoption
    part = get("keyword") or any("::" in word or word.endswith(".py") for word in config.args)
    return f"{Path(get('--model')).name}-{'full' if get('--full') else 'quick'}{'-part' if part else ''}"


def _backends(text: str | None) -> tuple[str, ...] | None:
    chosen = None if text is None else tuple(word.strip() for word in text.split(","))
    unknown = set(chosen or ()) - set(BACKENDS)
    if unknown:
        raise pytest.UsageError(f"--backends: got {min(unknown)!r}, expected some of {', '.join(BACKENDS)}")
    return chosen


def _batches(text: str | None) -> tuple[int, ...] | None:
    try:
        return None if text is None else tuple(int(word) for word in text.split(","))
    except ValueError:
        raise pytest.UsageError(f"--batches: got {text!r}, expected numbers such as 1,8") from None


def _or_usage_error(option: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except OSError as error:
        raise pytest.UsageError(f"{option}: {error.filename}: {error.strerror}") from None
    except (DdpmDeployError, ValueError) as error:
        raise pytest.UsageError(f"{option}: {error}") from None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """One test measures a whole group, as long as that takes."""
    if config.pluginmanager.hasplugin("timeout"):
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.timeout(0))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Which rows this run is to measure; the gate misses no others."""
    specs = (item.callspec.params.get("spec") for item in session.items if hasattr(item, "callspec"))
    session.config.stash[SELECTED] = {spec.id for spec in specs if isinstance(spec, Spec)}


@pytest.fixture(scope="session")
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """The session's own; closes every contender at its end."""
    session = request.config.stash[BENCH]
    with session:
        yield session


class Replay:
    """A clock that shows recorded times: pytest-benchmark's figures are those of the interleaved rounds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def play(self, seconds: Iterator[float]) -> None:
        """One round."""
        self.now += next(seconds)


CLOCK = Replay()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The rows of a suite, from the function `specs` of its module."""
    if "spec" in metafunc.fixturenames:
        specs = metafunc.module.specs(metafunc.config.stash[BENCH].options)
        marks = [pytest.mark.benchmark(timer=CLOCK, group=spec.group) for spec in specs]
        metafunc.parametrize(
            "spec", [pytest.param(s, marks=mark, id=str(s)) for s, mark in zip(specs, marks, strict=True)]
        )


@pytest.fixture
def row(request: pytest.FixtureRequest, spec: Spec, bench: Bench, benchmark: Any, replay: Any) -> Row:
    """The measured row of a test, shown to pytest-benchmark as well; skips where it is unavailable."""
    module = request.module
    selected = {
        item.callspec.params["spec"]: item.nodeid
        for item in request.session.items
        if item.module is module and "spec" in item.callspec.params
    }
    benchmark.skipped = True  # until there is something to show; keeps pytest-benchmark from warning
    with bench.skipping(spec):
        measured = bench.row(spec, selected, module.build, module.time_group(bench.options, spec))
    replay(measured.samples_s)
    benchmark.extra_info.update(_extra_info(measured))
    return measured


@pytest.fixture
def replay(benchmark: Any) -> Callable[[Sequence[float]], None]:
    """Show seconds that were measured already to pytest-benchmark, for tests of a spec."""

    def show(seconds: Sequence[float]) -> None:
        benchmark.skipped = False
        benchmark.pedantic(CLOCK.play, args=(iter(seconds),), rounds=len(seconds))

    return show


def _extra_info(row: Row) -> dict[str, Any]:
    """What pytest-benchmark's own JSON keeps beside the times."""
    parity = {} if row.parity is None else {"parity": dict(row.parity.figures), "weights": row.parity.weights}
    return {
        "batch": row.batch,
        "nfe": row.nfe,
        "cv": row.summary.cv,
        "percent_of_limit": row.percent_of_limit,
        **parity,
    }


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the report of what was measured, and hold it against an older one."""
    config = session.config
    bench = config.stash.get(BENCH, None)
    if bench is None or not (bench.rows or bench.sections):
        if config.stash.get(GATE, None) is not None:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED  # nothing was measured, so nothing is known to be well
        return
    folder = bench.options.report_folder
    command = shlex.join(["pytest", *map(str, config.invocation_params.args)])
    report = make_report(bench, folder.name, command, price_per_hour=config.getoption("--price-per-hour"))
    config.stash[WRITTEN] = write_all(report, folder)
    config.stash[SAID] = summary_lines(report)
    if config.stash[GATE] is not None and not _passes(config, config.stash[GATE], report):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _passes(config: pytest.Config, old: Report, new: Report) -> bool:
    """Whether the gate lets the new report through; what it found goes to the summary."""
    said = config.stash[SAID]
    try:
        changes = compare(old, new, parse_tolerance(config.getoption("--tolerance")), only=config.stash[SELECTED])
    except ValueError as error:
        said.append(f"gate: {error}")
        return False
    said += ["", *comparison_lines(old, new, changes)]
    if not tells(changes):
        said.append("gate: no row can be compared with the older report; measure both again, with a peer")
    return tells(changes) and not fails(changes)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The summary in words, and where the report is."""
    if config.stash.get(WRITTEN, None):
        terminalreporter.section("report")
        for line in config.stash[SAID]:
            terminalreporter.write_line(line)
        for path in config.stash[WRITTEN]:
            terminalreporter.write_line(os.path.relpath(path))
