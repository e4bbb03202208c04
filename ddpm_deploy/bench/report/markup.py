"""Elements of HTML and SVG; text and attributes are escaped by the standard library, so none can become markup."""

from __future__ import annotations

import re
from collections.abc import Iterable
from xml.etree.ElementTree import Element, tostring

UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")  # no document may hold them

Child = Element | str


def element(tag: str, *children: Child, **attributes: str | float | None) -> Element:
    """An element. attributes: `class_` and `stroke_width` become class and stroke-width; None leaves one out."""
    given = {_name(key): _value(value) for key, value in attributes.items() if value is not None}
    made = Element(tag, given)
    fill(made, children)
    return made


def fill(parent: Element, children: Iterable[Child]) -> None:
    """Append elements and texts in their order."""
    for child in children:
        if isinstance(child, Element):
            parent.append(child)
        elif len(parent):
            parent[-1].tail = (parent[-1].tail or "") + clean(child)
        else:
            parent.text = (parent.text or "") + clean(child)


def clean(text: str) -> str:
    """Without characters that no document may hold."""
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def to_html(root: Element) -> str:
    """The element as HTML."""
    return tostring(root, encoding="unicode", method="html")


def _name(key: str) -> str:
    return key if key == "viewBox" else key.rstrip("_").replace("_", "-")


def _value(value: str | float) -> str:
    return clean(value) if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
