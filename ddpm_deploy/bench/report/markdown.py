"""`report.md`: the same report as text, for a terminal, a pull request, a wiki."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import singledispatch
from typing import Any

from ddpm_deploy.bench.record import Report
from ddpm_deploy.bench.report.document import (
    Bullets,
    Code,
    Details,
    Figures,
    Inline,
    Line,
    Page,
    Paragraph,
    Picture,
    Section,
    Strong,
    Table,
)
from ddpm_deploy.bench.report.markup import clean
from ddpm_deploy.bench.report.sections import sections
from ddpm_deploy.bench.report.summary import summary

MARKUP = re.compile(r"([\\`*_<>|#\[\]~&])")  # what would be read as markup
TICKS = re.compile("`+")


def to_markdown(report: Report) -> str:
    """The whole page of a benchmark."""
    return page_to_markdown(Page(report.name, "benchmark", "", tuple(summary(report)), tuple(sections(report))))


def page_to_markdown(page: Page) -> str:
    """Any report."""
    head = [f"# {escape(page.name)}", *([escape(page.about)] if page.about else [])]
    head.append("\n".join(f"- {_inline(line)}" for line in page.summary))
    return "\n\n".join([*head, *(part for section in page.sections for part in _section(section))]) + "\n"


def escape(text: str) -> str:
    """Text that is shown as it is, on one line."""
    return MARKUP.sub(r"\\\1", " ".join(clean(text).split()))


def line_to_markdown(line: Line) -> str:
    """One line of a report."""
    return _inline(line)


def table_to_markdown(table: Table) -> str:
    """One table of a report."""
    return _table(table)


def _section(section: Section) -> list[str]:
    """Nothing for a section of plots only."""
    blocks = [text for text in map(_block, section.blocks) if text]
    return [f"## {escape(section.title)}", *blocks] if blocks else []


@singledispatch
def _block(block: Any) -> str:
    raise TypeError(f"block: got {type(block).__name__}, expected a part of document.py")


@_block.register
def _paragraph(block: Paragraph) -> str:
    return f"{'### ' if block.title else ''}{_inline(block.line)}"


@_block.register
def _bullets(block: Bullets) -> str:
    return "\n".join(f"- {_inline(line)}" for line in block.lines)


@_block.register
def _table(block: Table) -> str:
    rule = ["---:" if right else "---" for right in block.right]
    rows = [[_cell(part, strong=k in block.marked and not j) for j, part in enumerate(row)]
            for k, row in enumerate(block.rows)]  # fmt: skip
    return "\n".join(f"| {' | '.join(row)} |" for row in [[escape(name) for name in block.names], rule, *rows])


@_block.register
def _figures(block: Figures) -> str:
    return ""


@_block.register
def _picture(block: Picture) -> str:
    return f"![{escape(block.caption)}]({block.name})"


@_block.register
def _details(block: Details) -> str:
    return f"<details>\n<summary>{escape(block.summary)}</summary>\n\n{_table(block.table)}\n\n</details>"


def _cell(part: Inline, *, strong: bool) -> str:
    text = _inline((part,))
    return f"**{text}**" if strong and text else text


def _inline(line: Sequence[Inline]) -> str:
    return "".join(map(_part, line))


def _part(part: Inline) -> str:
    if isinstance(part, Strong):
        end = " " * (len(part.text) - len(part.text.rstrip()))
        return f"**{escape(part.text)}**{end}"
    if isinstance(part, Code):
        return _code(" ".join(clean(part.text).split()))
    lead, end = (" " if part[:1] == " " else ""), (" " if len(part) > 1 and part[-1:] == " " else "")
    return f"{lead}{escape(part)}{end}"


def _code(text: str) -> str:
    """In as many ticks as it takes; a bar would end the cell of a table."""
    fence = "`" * (1 + max((len(run) for run in TICKS.findall(text)), default=0))
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}".replace("|", r"\|")
