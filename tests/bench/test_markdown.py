"""`report.md`: every row is in it, and nothing in a report can become markup."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from reports import full_report, small_report

from ddpm_deploy.bench.record import Report
from ddpm_deploy.bench.report.document import Code
from ddpm_deploy.bench.report.markdown import _part, escape, to_markdown

UNESCAPED = re.compile(r"(?<!\\)\|")


@pytest.fixture(scope="module")
def report() -> Report:
    return full_report()


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return to_markdown(report)


def tables(page: str) -> list[list[str]]:
    """Runs of lines that begin with a bar."""
    blocks = (block.splitlines() for block in page.split("\n\n"))
    return [[line for line in block if line.startswith("|")] for block in blocks if block[0].startswith("|")]


def test_every_row_and_its_command_is_there(page: str, report: Report) -> None:
    for row in report.rows:
        assert f"| `{row.id}` | {row.nfe} | `{row.command}` |" in page


def test_curves_of_random_weights_are_labelled(report: Report) -> None:
    curves = [{**curve, "weights": "random"} for curve in report.sections["parity_curves"]]
    page = to_markdown(replace(report, sections={"parity_curves": curves}))
    section = page.partition("## Parity\n")[2].partition("\n## ")[0]
    assert "| contender | solver | weights |" in section
    assert section.count("| random |") == len(curves)


def test_every_table_is_rectangular(page: str) -> None:
    found = tables(page)
    assert len(found) > 15
    for lines in found:
        assert set(re.sub(r"[\s|:-]", "", lines[1])) == set()
        assert len({len(UNESCAPED.findall(line)) for line in lines}) == 1


def test_sections_stand_in_the_order_of_their_reading(page: str) -> None:
    titles = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert titles[:3] == ["Winners", "One evaluation of the network", "Whole samples"]
    assert {"Deadlines", "Quality", "Parity", "Noise: twins", "Load generator", "Protocol", "Skipped"} <= set(titles)


def test_report_of_one_suite_has_no_empty_section() -> None:
    page = to_markdown(small_report(rounds=12))
    assert "## Quality" not in page
    assert not re.search(r"^## .*\n\n## ", page, re.MULTILINE)


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a|b", r"a\|b"), ("<b>", r"\<b\>"), ("*x* _y_", r"\*x\* \_y\_"), ("`q`", r"\`q\`"), ("[a](b)", r"\[a\](b)"),
        ("one\n# two", r"one \# two"), ("\x00", "\N{REPLACEMENT CHARACTER}"), ("&lt;", r"\&lt;"),
    ],
)  # fmt: skip
def test_text_is_shown_as_it_is(text: str, escaped: str) -> None:
    assert escape(text) == escaped


def test_code_keeps_ticks_and_bars_within_its_cell() -> None:
    assert _part(Code("a `b` | c")) == r"`` a `b` \| c ``"


def test_hostile_names_stay_within_their_cells(report: Report) -> None:
    hostile = "<script>|x|</script>\n\n# owned"
    rows = tuple(replace(row, contender=f"{hostile} {k}", note=hostile) for k, row in enumerate(report.rows))
    page = to_markdown(replace(report, name=hostile, rows=rows, skipped=({"what": hostile, "reason": hostile},)))
    assert "<script>" not in page.replace(r"\<", "")
    assert "\n# owned" not in page
    for lines in tables(page):
        assert len({len(UNESCAPED.findall(line)) for line in lines}) == 1
