"""The parts of a report's page, for whichever renderer: nothing in it is markup, so nothing in it can be injected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Code:
    """Text as it would be typed."""

    text: str


@dataclass(frozen=True)
class Strong:
    """Text that a hurried reader sees."""

    text: str


Inline = str | Code | Strong
Line = tuple[Inline, ...]


@dataclass(frozen=True)
class Paragraph:
    """One paragraph. small: a remark below a table. title: of the table that follows."""

    line: Line
    small: bool = False
    title: bool = False


@dataclass(frozen=True)
class Bullets:
    """A list of lines."""

    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Table:
    """Columns whose name ends with `>` stand right, as numbers do. marked: rows that stand out."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Inline, ...], ...]
    marked: frozenset[int] = frozenset()

    @property
    def names(self) -> list[str]:
        """Of the columns, without the sign."""
        return [column.removesuffix(">") for column in self.columns]

    @property
    def right(self) -> list[bool]:
        """Whether each column is one of numbers."""
        return [column.endswith(">") for column in self.columns]


@dataclass(frozen=True)
class Style:
    """How a contender looks in every plot. tone: own0 ... own5, peer, twin; turn: which marker and dash."""

    tone: str
    turn: int


@dataclass(frozen=True)
class Point:
    """One mark. low, high: its interval in y, if any. label: what a pointer shows."""

    x: float
    y: float
    label: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """The marks of one contender, joined by a line or not."""

    name: str
    style: Style
    points: tuple[Point, ...]
    line: bool = True
    marks: bool = True


@dataclass(frozen=True)
class Bar:
    """One contender's figure with its interval. text: the figure as it is written."""

    name: str
    style: Style
    value: float
    text: str
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Bars:
    """Horizontal bars from zero. rule: (value, name) of a vertical line."""

    title: str
    bars: tuple[Bar, ...]
    rule: tuple[float, str] | None = None


@dataclass(frozen=True)
class Chart:
    """Series over two axes, each linear or logarithmic. rule: (value, name) of a horizontal line."""

    title: str
    x_name: str
    y_name: str
    series: tuple[Series, ...]
    x_log: bool = False
    y_log: bool = False
    x_ticks: tuple[float, ...] = ()
    rule: tuple[float, str] | None = None


Plot = Bars | Chart


@dataclass(frozen=True)
class Figures:
    """Plots side by side with one caption; a text has none of them."""

    plots: tuple[Plot, ...]
    caption: str


@dataclass(frozen=True)
class Picture:
    """A PNG with its caption. name: of its file beside a text, which cannot hold it; sharp: shows single pixels."""

    png: bytes
    name: str
    caption: str
    sharp: bool = True


@dataclass(frozen=True)
class Details:
    """What opens on request."""

    summary: str
    table: Table


Block = Paragraph | Bullets | Table | Figures | Picture | Details


@dataclass(frozen=True)
class Section:
    """A heading and what is below it. key: the anchor."""

    key: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Page:
    """A whole report. kind: what it is one of, for the window's title. about: one line below the name."""

    name: str
    kind: str
    about: str
    summary: tuple[Line, ...]
    sections: tuple[Section, ...]


def text_of(line: Sequence[Inline]) -> str:
    """Without any emphasis."""
    return "".join(part if isinstance(part, str) else part.text for part in line)
