"""`python -m ddpm_deploy.bench`: hold a run's report against an older one, or write a report's pages again."""

from __future__ import annotations

import argparse
import json as json_module
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ddpm_deploy.bench.gate import compare, fails, parse_tolerance, tells, warnings
from ddpm_deploy.bench.record import FILE, PEER, Report, read_report
from ddpm_deploy.bench.report.terminal import comparison_lines, counts_in_words
from ddpm_deploy.bench.report.write import write_pages
from ddpm_deploy.cli import Formatter, Parser, make_parser, run_command, some_path

WORSE = 1  # exit code


def build_parser() -> argparse.ArgumentParser:
    """The command line of `bench`."""
    parser = make_parser("bench", "Work with reports of `pytest benchmarks/`; the measuring itself is done there.")
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK", parser_class=Parser)
    look: dict[str, Any] = {"formatter_class": Formatter, "allow_abbrev": False}
    about = "Compare ratios to a peer of the same rounds; exits 0 when none got worse, 1 when one did."
    add = tasks.add_parser("compare", help="is the new run slower than the old one?", description=about, **look)
    add.add_argument("old", type=some_path, metavar="OLD", help=f"{FILE}, or its folder")
    add.add_argument("new", type=some_path, metavar="NEW", help=f"{FILE}, or its folder")
    add.add_argument("--tolerance", type=_tolerance, default="5%", help="slow-down that is let pass")
    add.add_argument("--anchor", metavar="NAME", help="the one peer to compare with; none: all, by their mean")
    add.add_argument("--json", action="store_true", help="print every change as JSON")
    about = f"Write report.html and report.md anew from {FILE}."
    add = tasks.add_parser("render", help="write the pages of a report again", description=about, **look)
    add.add_argument("folder", type=some_path, metavar="FOLDER", help=f"of {FILE}, and for the pages")
    return parser


def run(*, task: str, **arguments: Any) -> int:
    """Do one of `TASKS`; see `build_parser` for its arguments."""
    return TASKS[task](**arguments)


def run_compare(*, old: Path, new: Path, tolerance: float, anchor: str | None, json: bool) -> int:
    """Print what became of every row; `WORSE` where one got worse, ValueError where there is nothing to compare."""
    before, after = read_report(old), read_report(new)
    _check_anchor(anchor, before, after)
    changes = compare(before, after, tolerance, anchor)
    if not tells(changes):
        raise ValueError(f"{new}: no row can be compared with {old}: {counts_in_words(changes)}; measure both again")
    if json:
        facts = {"worse": fails(changes), "tolerance": tolerance, "warnings": warnings(before, after)}
        print(json_module.dumps({**facts, "changes": [asdict(change) for change in changes]}))
    else:
        print("\n".join(comparison_lines(before, after, changes)))
    return WORSE if fails(changes) else 0


def _check_anchor(anchor: str | None, *reports: Report) -> None:
    common = set.intersection(*({row.contender for row in one.rows if row.kind == PEER} for one in reports))
    if anchor is not None and anchor not in common:
        raise ValueError(
            f"--anchor: got {anchor!r}, expected a peer of both runs: {'; '.join(sorted(common)) or 'none'}"
        )


def run_render(*, folder: Path) -> int:
    """Write the pages beside their report, and say where they are."""
    for path in write_pages(read_report(folder / FILE), folder):
        print(path)
    return 0


TASKS: Mapping[str, Callable[..., int]] = {"compare": run_compare, "render": run_render}


def _tolerance(text: str) -> float:
    try:
        return parse_tolerance(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_command(build_parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
