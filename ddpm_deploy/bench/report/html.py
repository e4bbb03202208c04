"""`report.html`: one file without a script, that loads nothing and opens anywhere."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import singledispatch
from importlib.resources import files
from typing import Any
from xml.etree.ElementTree import Element

from ddpm_deploy.bench.record import Report
from ddpm_deploy.bench.report.document import (
    Bullets,
    Chart,
    Code,
    Details,
    Figures,
    Inline,
    Page,
    Paragraph,
    Picture,
    Plot,
    Section,
    Strong,
    Style,
    Table,
)  # fmt: skip
from ddpm_deploy.bench.report.markup import Child, element, to_html
from ddpm_deploy.bench.report.sections import sections
from ddpm_deploy.bench.report.summary import device_in_words, model_in_words, summary
from ddpm_deploy.bench.report.svg import draw, swatch

STYLE = files(__package__) / "report.css"  # found in a wheel as well
UNBROKEN = 30  # letters of a cell that stay on one line
WIDE = 7  # columns from which on a table becomes a list on a phone
POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # a browser that obeys it loads nothing, whatever is written
PICTURES = "; img-src data:"  # what the page itself holds


def to_page(report: Report) -> str:
    """The whole page of a benchmark."""
    about = f"{model_in_words(report)} · {device_in_words(report.machine)} · {report.mode} run, {report.made}"
    return page_to_html(Page(report.name, "benchmark", about, tuple(summary(report)), tuple(sections(report))))


def page_to_html(page: Page) -> str:
    """Any report."""
    main = element("main", *_header(page), _contents(page.sections), *map(_section, page.sections))
    whole = element("html", _head(page), element("body", main), lang="en")
    return f"<!DOCTYPE html>\n{to_html(whole)}\n"


def _head(page: Page) -> Element:
    shows = any(isinstance(block, Picture) for section in page.sections for block in section.blocks)
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY + PICTURES if shows else POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{page.name}: {page.kind}"),
        element("style", STYLE.read_text(encoding="utf-8")),
    )


def _header(page: Page) -> list[Element]:
    lines = [element("li", *_inline(line)) for line in page.summary]
    return [
        element("header", element("h1", page.name), element("p", page.about, class_="about")),
        element("section", element("ul", *lines), class_="summary", id="summary"),
    ]


def _contents(found: Sequence[Section]) -> Element:
    return element("nav", *(element("a", section.title, href=f"#{_anchor(section.key)}") for section in found))


def _section(section: Section) -> Element:
    parts = [element("h2", section.title), *map(_block, section.blocks)]
    return element("section", *parts, id=_anchor(section.key))


def _anchor(key: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in key)


@singledispatch
def _block(block: Any) -> Element:
    raise TypeError(f"block: got {type(block).__name__}, expected a part of document.py")


@_block.register
def _paragraph(block: Paragraph) -> Element:
    tag, look = ("h3", None) if block.title else ("p", "small" if block.small else None)
    return element(tag, *_inline(block.line), class_=look)


@_block.register
def _bullets(block: Bullets) -> Element:
    return element("ul", *(element("li", *_inline(line)) for line in block.lines))


@_block.register
def _table(block: Table) -> Element:
    looks = ["right" if right else None for right in block.right]
    head = [element("th", name, class_=look, scope="col") for name, look in zip(block.names, looks, strict=True)]
    body = [
        element("tr", *_cells(row, looks, block.names), class_="marked" if k in block.marked else None)
        for k, row in enumerate(block.rows)
    ]
    wide = "wide" if len(block.names) >= WIDE else None
    table = element("table", element("thead", element("tr", *head)), element("tbody", *body), class_=wide)
    return element("div", table, class_="scroll", tabindex="0")


def _cells(row: Sequence[Inline], looks: Sequence[str | None], names: Sequence[str]) -> list[Element]:
    """Each with the name of its column, which a narrow screen shows before it."""
    first, *others = (element("td", *_cell(cell), class_=look) for cell, look in zip(row, looks, strict=True))
    for cell, name in zip(others, names[1:], strict=True):
        cell.set("data-head", name)
    first.tag = "th"
    first.set("scope", "row")
    return [first, *others]


@_block.register
def _figures(block: Figures) -> Element:
    caption = element("figcaption", block.caption)
    panels = element("div", *map(_panel, block.plots), class_="panels")
    return element("figure", panels, *_legend(block.plots), caption)


def _panel(plot: Plot) -> Element:
    return element("div", element("h4", plot.title), draw(plot), class_="panel")


def _legend(plots: Sequence[Plot]) -> list[Element]:
    """One for all panels; bars carry their names themselves."""
    known: dict[str, tuple[Style, bool]] = {}
    for plot in plots:
        for series in plot.series if isinstance(plot, Chart) else ():
            known.setdefault(series.name, (series.style, series.line))
    items = [element("li", swatch(style, line=line), name) for name, (style, line) in known.items()]
    return [element("ul", *items, class_="legend")] if items else []


@_block.register
def _picture(block: Picture) -> Element:
    source = f"data:image/png;base64,{base64.b64encode(block.png).decode()}"
    image = element("img", src=source, alt=block.caption, class_="sharp" if block.sharp else None)
    return element("figure", image, element("figcaption", block.caption))


@_block.register
def _details(block: Details) -> Element:
    return element("details", element("summary", block.summary), _table(block.table))


def _cell(cell: Inline) -> list[Child]:
    return _breakable(cell) if isinstance(cell, str) else _inline((cell,))


def _breakable(text: str) -> list[Child]:
    """A cell's text in pieces that stay on one line each: it breaks after a comma and not in figures."""
    if not text:
        return []
    if "," not in text and len(text) <= UNBROKEN:
        return [element("span", text, class_="piece")]
    pieces = [piece + "," for piece in text.split(", ")]
    pieces[-1] = pieces[-1][:-1]
    found: list[Child] = []
    for piece in pieces:
        found += [element("span", piece, class_="piece" if len(piece) <= UNBROKEN else None), " "]
    return found[:-1]


def _inline(line: Sequence[Inline]) -> list[Child]:
    return [part if isinstance(part, str) else _emphasis(part) for part in line]


def _emphasis(part: Code | Strong) -> Element:
    return element("code" if isinstance(part, Code) else "strong", part.text)
