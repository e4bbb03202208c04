"""What was set out to reach on a CPU, and what two runs of the benchmarks measured, as Markdown tables.

    pytest benchmarks/bench_step.py benchmarks/bench_cold.py benchmarks/bench_overhead.py --model cifar10 --full
    pytest benchmarks/bench_step.py benchmarks/bench_sampling.py benchmarks/bench_quality.py --full
    python -m benchmarks.targets benchmarks/reports/cifar10-full-part benchmarks/reports/digits-full-part

Ratios are paired, within the rounds of one group; parity is that of our row. A figure of a row that is not to be quoted
says so beside its verdict, and one that could not be measured here says why. With `--into` the tables go into a page,
between its two marks.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.bench_sampling import FEW, LOOPS
from benchmarks.peers import COMPILED, EAGER
from ddpm_deploy.bench.gate import require_same_model
from ddpm_deploy.bench.record import OWN, Report, Row, of_products, read_report
from ddpm_deploy.bench.report.gains import EQUAL, as_good, lost
from ddpm_deploy.bench.report.markdown import line_to_markdown, table_to_markdown
from ddpm_deploy.bench.report.summary import summary
from ddpm_deploy.bench.report.tables import suite_table, winners_table
from ddpm_deploy.bench.report.views import flags
from ddpm_deploy.bench.statistics import Interval, paired_ratio

THOUSAND = "a picture, a thousand evaluations or twelve, batch 1"
LOOPED = "onnxruntime fp32"  # whose loop and cold start are judged
CHAIN = "diffusers DDPMPipeline fp32"
BY_HAND = f"{LOOPS[0]} fp32"
MARKS = ("<!-- measured: python -m benchmarks.targets -->", "<!-- measured: end -->")
APART = ("cold_start", "overhead")
HEADS = ("figure", "target", "measured", "by", "parity of it", "")


@dataclass(frozen=True)
class Found:
    """One measured figure. ok: whether it reached its target. reservations: why not to rely on it, each once."""

    value: str
    by: str = ""
    parity: str = ""
    ok: bool | None = None
    reservations: tuple[str, ...] = ()

    def line(self, figure: str, target: str) -> str:
        """One row of the table."""
        verdict = {True: "reached", False: "**missed**", None: "not measured here"}[self.ok]
        verdict += f", but {', '.join(self.reservations)}" if self.reservations else ""
        return f"| {figure} | {target} | {self.value} | {self.by} | {self.parity} | {verdict} |"


Measure = Callable[[], Found]


def table(network: Report, digits: Report) -> str:
    """Every figure beside its target."""
    entries: list[tuple[str, str, Measure]] = []
    for precision, against, targets in (
        ("fp32", f"{EAGER} fp32", (2.2, 1.4)),
        ("fp32", f"{COMPILED} fp32", (1.15, 1.15)),
        ("bf16", f"{EAGER} fp32", (4.2, 2.6)),
        ("int8", f"{EAGER} fp32", (5.0, 3.8)),
    ):
        for batch, target in zip((1, 8), targets, strict=True):
            figure = f"best {precision} step against {against}, batch {batch}"
            entries.append((figure, f"≥ {target}x", _step(network, precision, against, batch, target)))
    for precision in ("fp32", "bf16"):
        figure = f"percent of the measured {precision} peak, batch 8"
        entries.append((figure, "≥ 85 %", _peak(network, precision, 85.0)))
    entries += [
        ("a whole sampling over its evaluations, batch 1", "≤ 1.01", lambda: _loop(network, 1.01)),
        ("digits: twelve evaluations of ours against `DDPMPipeline`'s thousand", "≥ 350x",
         lambda: _thousand(digits, 350.0)),
        ("peak memory of the service, of diffusers'", "≤ 0.4x", lambda: _cold(network, "peak_rss_bytes", 0.4)),
        ("cold start to the first picture, of diffusers'", "≤ 0.4x", lambda: _cold(network, "total_s", 0.4)),
    ]  # fmt: skip
    lines = ["| " + " | ".join(HEADS) + " |", "|" + "---|" * len(HEADS)]
    return "\n".join([*lines, *(measure().line(figure, target) for figure, target, measure in entries)])


def page(network: Report, digits: Report) -> str:
    """The table of targets, then of each run what it was, its winners, and every contender of a single evaluation."""
    parts = ["### Against the targets", table(network, digits)]
    for report in (network, digits):
        steps = [row for row in report.rows if row.suite == "step"]
        parts += [
            f"### {report.name}",
            line_to_markdown(summary(report)[0]),
            table_to_markdown(winners_table(report)),
            *(
                f"#### {group}\n\n{table_to_markdown(suite_table(report, report.group(group)))}"
                for group in dict.fromkeys(row.group for row in steps)
            ),
        ]
    return "\n\n".join(parts)


def with_sections(network: Report, beside: Report) -> Report:
    """The rows of one run, with the cold starts and the overhead that another one measured on the same machine."""
    require_same_model(network, beside)
    for name in ("cpu", "threads"):
        if _steady(network.machine.get(name)) != _steady(beside.machine.get(name)):
            raise ValueError(f"{beside.name}: {name}: expected that of {network.name}; measure both on one machine")
    apart = {name: beside.sections[name] for name in APART if name in beside.sections}
    return replace(network, sections={**network.sections, **apart})


def _steady(fact: Any) -> Any:
    """Without the clock of the moment."""
    return {k: v for k, v in fact.items() if "mhz" not in k} if isinstance(fact, Mapping) else fact


def into(path: Path, text: str) -> None:
    """Replace what is between the marks of a page; ValueError where they are not there."""
    before, found, rest = path.read_text("utf-8").partition(MARKS[0])
    _, ended, after = rest.partition(MARKS[1])
    if not found or not ended:
        raise ValueError(f"{path}: expected the lines {MARKS[0]} and {MARKS[1]}")
    path.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{after}", "utf-8")


def _step(report: Report, precision: str, against: str, batch: int, target: float) -> Measure:
    def measure() -> Found:
        rows = [row for row in report.rows if row.suite == "step" and row.batch == batch]
        best = _best(rows, precision)
        other = next((row for row in rows if row.contender == against), None)
        if best is None or other is None:
            return Found(_why_not(report, f"{precision}-b{batch}" if best is None else against))
        ratio = other.times_over(best)
        return Found(_ratio(ratio), best.contender, _parity(best), ratio.value >= target, _flags(best, other))

    return measure


def _peak(report: Report, precision: str, target: float) -> Measure:
    def measure() -> Found:
        best = _best([row for row in report.rows if row.suite == "step" and row.batch == 8], precision)
        if best is None or best.percent_of_limit is None:
            return Found(_why_not(report, f"{precision}-b8"))
        reached = best.percent_of_limit >= target
        return Found(f"{best.percent_of_limit:.0f} %", best.contender, _parity(best), reached, _flags(best))

    return measure


def _loop(report: Report, target: float) -> Found:
    for fact in report.sections.get("overhead", ()):
        if "bare evaluations" in fact["what"]:
            rows = [row for row in report.rows if row.suite == "step" and row.batch == 1 and row.contender == LOOPED]
            parity = _parity(rows[0]) if rows else ""
            return Found(f"{fact['value']:.3f}", LOOPED, parity, fact["value"] <= target)
    return Found("bench_overhead.py did not run")


def _thousand(report: Report, target: float) -> Found:
    """The whole, and its two factors: the solver on the same runtime, then the runtime."""
    rows = {(row.contender, row.nfe): row for row in report.group(THOUSAND)}
    ours = min((row for row in rows.values() if row.kind == OWN and row.nfe <= FEW), key=_median, default=None)
    chain, by_hand = rows.get((CHAIN, 1000)), rows.get((BY_HAND, FEW))
    if ours is None or chain is None or by_hand is None:
        return Found("the group of a thousand evaluations was not measured")
    whole = chain.times_over(ours)
    fewer, faster = chain.times_over(by_hand), by_hand.times_over(ours)
    factors = f"{fewer.value:.1f}x fewer × {faster.value:.1f}x faster"
    value = f"{whole.value:.0f}x [{whole.low:.0f}, {whole.high:.0f}] ≈ {factors}"
    quality, good = _quality(report)
    ok = None if good is None else good and whole.value >= target
    return Found(f"{value}; {quality}", ours.contender, _parity(ours), ok, _flags(ours, chain, by_hand))


def _quality(report: Report) -> tuple[str, bool | None]:
    """Of both ways in words, and whether ours is as good; None where one of them was not measured."""
    values = {(fact["solver"], fact["nfe"]): fact for fact in report.sections.get("quality", ())}
    ours, theirs = values.get(("unipc", FEW)), values.get(("ddpm", 1000))
    if ours is None or theirs is None:
        return "quality of both was not measured", None
    said, loss = f"unipc {FEW} {ours['value']:.3f}, ddpm 1000 {theirs['value']:.3f}", lost(ours, theirs)
    if loss is None:
        return f"quality not paired by seeds: {said}", None
    verdict = "equal quality" if max(-loss.low, loss.high) <= EQUAL else "quality not equal"
    return f"{verdict}: {said}, [{loss.low:.3f}, {loss.high:.3f}] lost", as_good(ours, theirs)


def _cold(report: Report, key: str, target: float) -> Found:
    facts = {fact["contender"]: fact for fact in report.sections.get("cold_start", ())}
    if not {"diffusers", LOOPED} <= facts.keys():
        return Found("bench_cold.py did not run")
    ours, theirs = facts[LOOPED], facts["diffusers"]
    unit, scale = ("MiB", 2**20) if key.endswith("bytes") else ("s", 1)
    ratio = ours[key] / theirs[key]
    if key == "total_s":  # each start of ours followed one of theirs, or the other way round
        ratio = paired_ratio(ours["total_samples_s"], theirs["total_samples_s"]).value
    value = f"{ratio:.2f}x ({ours[key] / scale:.3g} of {theirs[key] / scale:.3g} {unit})"
    return Found(value, LOOPED, ours.get("parity", ""), ratio <= target)


def _best(rows: Sequence[Row], precision: str) -> Row | None:
    ours = (row for row in rows if row.kind == OWN and of_products(row.precision) == precision)
    return min(ours, key=_median, default=None)


def _median(row: Row) -> float:
    return row.summary.median.value


def _flags(*rows: Row) -> tuple[str, ...]:
    """Why the figures of these rows are not to be quoted; a ratio is no better than the worse of its two."""
    return tuple(dict.fromkeys(reason for row in rows for reason in flags(row).split(", ") if reason))


def _ratio(ratio: Interval) -> str:
    return f"{ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"


def _parity(row: Row) -> str:
    figures: Mapping[str, Any] = row.parity.figures if row.parity else {}
    shown = [
        f"{name.replace('_', ' ')} {figures[name]:.2g}" for name in ("relative_l2", "final_max_abs") if name in figures
    ]
    weights = row.parity.weights if row.parity else ""
    return ", ".join(shown) + (f" ({weights})" if weights.startswith("random") else "")


def _why_not(report: Report, part: str) -> str:
    reasons = [skip["reason"] for skip in report.skipped if part in skip["what"]]
    return reasons[0].partition(";")[0] if reasons else f"no row of {part}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", type=Path, help="report folder of the CIFAR-10 network")
    parser.add_argument("digits", type=Path, help="report folder of the digits model")
    parser.add_argument("--beside", type=Path, metavar="FOLDER", help="report of the network's cold start and overhead")
    parser.add_argument("--into", type=Path, metavar="PAGE", help="write the tables of both runs there")
    args = parser.parse_args(argv)
    network, digits = (read_report(folder / "report.json") for folder in (args.network, args.digits))
    if args.beside is not None:
        network = with_sections(network, read_report(args.beside / "report.json"))
    reports = (network, digits)
    print(table(*reports))
    if args.into is not None:
        into(args.into, page(*reports))


if __name__ == "__main__":
    main()
