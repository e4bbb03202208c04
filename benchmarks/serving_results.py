"""What runs of the serving benchmark measured, as Markdown tables, each figure beside its target.

    pytest benchmarks/bench_serving.py --full --report serving-digits
    pytest benchmarks/bench_serving.py --full --model cifar10 --report serving-cifar10
    python -m benchmarks.serving_results benchmarks/reports/serving-digits benchmarks/reports/serving-cifar10

With `--into` the tables go into a page, between its two marks.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.serving.page import into
from ddpm_deploy.bench.record import Report, read_report
from ddpm_deploy.bench.report.summary import device_in_words, model_in_words
from ddpm_deploy.bench.report.words import number

MARK = "python -m benchmarks.serving_results"
HEADS = "| figure | of | measured | target | | |\n|---|---|---:|---|---|---|"


def table(report: Report) -> str:
    """What the run was, and every figure of its section `serving`."""
    facts = report.sections.get("serving", ())
    if not facts:
        raise ValueError(f"{report.name}: has no section serving; run pytest benchmarks/bench_serving.py first")
    skipped = [f"Left out: {e['what']}: {e['reason']}." for e in report.skipped]
    return "\n\n".join(
        [
            f"#### {report.model['name']}",
            f"{model_in_words(report)}, on {device_in_words(report.machine)}; a {report.mode} run of {report.made}.",
            "\n".join([HEADS, *map(_line, facts)]),
            *skipped,
        ]
    )


def _line(fact: Mapping[str, Any]) -> str:
    low, high = fact.get("spread") or (None, None)
    spread = "" if low is None or high is None or low == high else f" [{number(low)}, {number(high)}]"
    verdict = {True: "reached", False: "**missed**"}.get(bool(fact["met"])) if "met" in fact else ""
    cells = [fact["figure"], fact["contender"], f"{number(fact['value'])}{spread} {fact['unit']}"]
    return "| " + " | ".join([*cells, fact.get("target", ""), verdict or "", fact.get("remark", "")]) + " |"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="+", type=Path, help="folders that the benchmark wrote")
    parser.add_argument("--into", type=Path, metavar="PAGE", help="write the tables there")
    args = parser.parse_args(argv)
    text = "\n\n".join(table(read_report(folder)) for folder in args.reports)
    print(text)
    if args.into is not None:
        into(args.into, MARK, text)


if __name__ == "__main__":
    main()
