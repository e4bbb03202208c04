"""Plots as SVG that takes its colours and fonts from the page, so that it suits paper, a phone and the dark."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element

from ddpm_deploy.bench.report.document import Bar, Bars, Chart, Plot, Point, Series, Style
from ddpm_deploy.bench.report.markup import element
from ddpm_deploy.bench.report.scales import scale_for

WIDTH, HEIGHT = 360.0, 264.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 10.0, 24.0, 40.0  # around the field of a chart
ROW, BAR = 37.0, 9.0  # height of one bar with its name, and of the bar alone
LETTERS = 46  # of a bar's name
RADIUS = 4.0
DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4")
CORNERS = {  # of the markers, in radii; the first is round
    1: ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    2: ((0.0, -1.2), (1.1, 0.8), (-1.1, 0.8)),
    3: ((0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)),
    4: ((-1.1, -0.8), (1.1, -0.8), (0.0, 1.2)),
}


def draw(plot: Plot) -> Element:
    """The plot without its title."""
    return _bars(plot) if isinstance(plot, Bars) else _chart(plot)


def swatch(style: Style, *, line: bool) -> Element:
    """What a legend shows of a series."""
    parts = [_stroke(style, "M1 6H25")] if line else []
    return _svg("", 26, 12, [*parts, _marker(style, 13, 6)])


def _svg(label: str, width: float, height: float, children: list[Element]) -> Element:
    said = {"role": "img", "aria_label": label} if label else {"aria_hidden": "true", "width": width, "height": height}
    return element("svg", *children, viewBox=f"0 0 {width:g} {height:g}", **said)


# -- bars -------------------------------------------------------------------------------------------------------------


def _bars(plot: Bars) -> Element:
    longest = max([*(max(bar.value, bar.high or 0) for bar in plot.bars), *([plot.rule[0]] if plot.rule else [])])
    unit = (WIDTH - 4) / (longest or 1)
    height = ROW * len(plot.bars) + (16 if plot.rule else 0)
    parts = [_bar(bar, k * ROW, unit) for k, bar in enumerate(plot.bars)]
    parts += list(_vertical_rule(plot, unit))
    said = "; ".join(f"{bar.name} {bar.text}" for bar in plot.bars)
    return _svg(f"{plot.title}: {said}", WIDTH, height, parts)


def _bar(bar: Bar, top: float, unit: float) -> Element:
    y, length = top + 18, max(1.0, bar.value * unit)
    parts = [
        element("title", bar.note or f"{bar.name}: {bar.text}"),
        element("text", _shortened(bar.name), x=0, y=top + 13, class_="name"),
        element("text", bar.text, x=WIDTH, y=top + 13, class_="value", text_anchor="end"),
        element("rect", x=0, y=y, width=WIDTH, height=BAR, rx=2, class_="track"),
        element("rect", x=0, y=y, width=length, height=BAR, rx=2, class_=f"fill {bar.style.tone}"),
    ]
    if bar.low is not None and bar.high is not None:
        low, high, middle = bar.low * unit, bar.high * unit, y + BAR / 2
        path = f"M{low:.2f} {middle:g}H{high:.2f}M{low:.2f} {y - 1:g}v{BAR + 2:g}M{high:.2f} {y - 1:g}v{BAR + 2:g}"
        parts.append(element("path", d=path, class_="whisker"))
    return element("g", *parts)


def _shortened(name: str) -> str:
    """As much of a name as stands before the figure."""
    return name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…"


def _vertical_rule(plot: Bars, unit: float) -> Iterator[Element]:
    """Across the bars, not across what is written between them."""
    if plot.rule is not None:
        x, bottom = plot.rule[0] * unit, ROW * len(plot.bars)
        across = "".join(f"M{x:.2f} {k * ROW + 15:g}v{BAR + 6:g}" for k in range(len(plot.bars)))
        yield element("path", d=across, class_="rule")
        yield element("text", plot.rule[1], x=min(x, WIDTH), y=bottom + 12, class_="tick", text_anchor="end")


# -- charts -----------------------------------------------------------------------------------------------------------


class _Field:
    """The drawing area of a chart: places of values."""

    def __init__(self, chart: Chart) -> None:
        points = [point for series in chart.series for point in series.points]
        heights = [y for p in points for y in (p.y, p.low, p.high) if y is not None]
        heights += [chart.rule[0]] if chart.rule else []
        self.x_scale = scale_for([p.x for p in points], log=chart.x_log, ticks=chart.x_ticks)
        self.y_scale = scale_for(heights, log=chart.y_log)

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * self.x_scale.part(value)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * self.y_scale.part(value)


def _chart(chart: Chart) -> Element:
    field = _Field(chart)
    parts = [*_axes(chart, field)]
    if chart.rule is not None:
        y = field.y(chart.rule[0])
        parts.append(element("path", d=f"M{LEFT:g} {y:.2f}H{WIDTH - RIGHT:g}", class_="rule"))
        parts.append(element("text", chart.rule[1], x=WIDTH - RIGHT, y=y - 5, class_="tick", text_anchor="end"))
    for series in reversed(chart.series):  # the first lies on top
        parts.append(element("g", *_series(series, field), class_="series"))
    return _svg(f"{chart.title}: {chart.y_name or chart.title} against {chart.x_name}", WIDTH, HEIGHT, parts)


def _axes(chart: Chart, field: _Field) -> Iterator[Element]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for tick, name in zip(field.y_scale.ticks, field.y_scale.tick_names, strict=True):
        y = field.y(tick)
        yield element("path", d=f"M{LEFT:g} {y:.2f}H{right:g}", class_="grid")
        yield element("text", name, x=LEFT - 7, y=y + 4, class_="tick", text_anchor="end")
    yield element("path", d=f"M{LEFT:g} {bottom:g}H{right:g}", class_="axis")
    for tick, name in zip(field.x_scale.ticks, field.x_scale.tick_names, strict=True):
        x = field.x(tick)
        yield element("path", d=f"M{x:.2f} {bottom:g}v4", class_="axis")
        yield element("text", name, x=x, y=bottom + 16, class_="tick", text_anchor="middle")
    yield element("text", chart.y_name, x=0, y=12, class_="axis-name")
    yield element("text", chart.x_name, x=right, y=HEIGHT - 5, class_="axis-name", text_anchor="end")


def _series(series: Series, field: _Field) -> Iterator[Element]:
    places = [(field.x(point.x), field.y(point.y)) for point in series.points]
    if series.line and len(places) > 1:
        yield _stroke(series.style, "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in places))
    for point, (x, y) in zip(series.points, places, strict=True):
        yield from _interval(series, point, field)
        if series.marks:
            yield element("g", element("title", point.label), _marker(series.style, x, y))


def _interval(series: Series, point: Point, field: _Field) -> Iterator[Element]:
    if point.low is not None and point.high is not None:
        path = f"M{field.x(point.x):.2f} {field.y(point.low):.2f}V{field.y(point.high):.2f}"
        yield element("path", d=path, class_=f"bar {series.style.tone}")


def _stroke(style: Style, path: str) -> Element:
    return element(
        "path", d=path, class_=f"line {style.tone}", stroke_dasharray=DASHES[style.turn % len(DASHES)] or None
    )


def _marker(style: Style, x: float, y: float) -> Element:
    shape, look = CORNERS.get(style.turn % (len(CORNERS) + 1)), f"mark {style.tone}"
    if shape is None:
        return element("circle", cx=x, cy=y, r=RADIUS, class_=look)
    corners = " ".join(f"{x + RADIUS * a:.2f},{y + RADIUS * b:.2f}" for a, b in shape)
    return element("polygon", points=corners, class_=look)
