"""`report.html`: one file that loads nothing, is well-formed, shows every row, and draws in a browser."""

from __future__ import annotations

import re
import shutil
import subprocess
import zipfile
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from reports import full_report, small_report

from ddpm_deploy.bench.record import Report
from ddpm_deploy.bench.report.html import to_page
from ddpm_deploy.bench.report.words import milliseconds

VOID = {"meta", "br", "hr", "img", "input", "link"}
LOADING = {"script", "link", "img", "iframe", "object", "embed", "audio", "video", "source", "base", "form", "image"}
HOSTILE = "</title></style><script>alert(1)</script><img src=x onerror=alert(1)>\x00\x1b'\"&amp;"


class Page(HTMLParser):
    """Reads a page strictly: every element that is opened is closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.cells: list[list[str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.cells.append([])
        elif tag in ("td", "th"):
            self.cells[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if {"td", "th"} & set(self.open):
            self.cells[-1][-1] += data


@pytest.fixture(scope="module")
def report() -> Report:
    return full_report()


@pytest.fixture(scope="module")
def text(report: Report) -> str:
    return to_page(report)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_every_element_is_closed(page: Page, text: str) -> None:
    assert page.open == []
    assert text.startswith("<!DOCTYPE html>\n<html lang=")


def test_page_loads_nothing(page: Page, text: str) -> None:
    assert not LOADING & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not {"src", "srcset", "data", "action", "poster"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
        assert (attributes.get("href") or "#").startswith("#")
    assert not re.search(r"url\(|@import|https?://", text)
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_every_row_is_in_the_page(page: Page, report: Report) -> None:
    commands = {(cells[0], cells[2]) for cells in page.cells if len(cells) == 3}
    assert {(row.id, row.command) for row in report.rows} <= commands
    shown = {(cells[0], cells[2]) for cells in page.cells if len(cells) > 5}
    for row in report.rows:
        if row.suite != "deadline":
            assert (row.contender, milliseconds(row.summary.median.value)) in shown


def test_every_contents_entry_has_its_section_and_ids_are_unique(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    links = [attributes["href"][1:] for tag, attributes in page.tags if tag == "a"]
    assert len(ids) == len(set(ids))
    assert len(links) > 10
    assert set(links) <= set(ids)


def test_plots_have_names_and_stay_within_their_frames(text: str) -> None:
    plots = [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    named = [plot for plot in plots if plot.get("role") == "img"]
    assert len(named) >= 12
    for plot in named:
        assert plot.get("aria-label")
        width, height = map(float, plot.get("viewBox").split()[2:])
        for rect in plot.iter("rect"):
            assert float(rect.get("x")) >= 0
            assert float(rect.get("x")) + float(rect.get("width")) <= width + 0.01
        for circle in plot.iter("circle"):
            assert 0 < float(circle.get("cx")) < width
            assert 0 < float(circle.get("cy")) < height


def test_bars_are_as_long_as_their_figures(text: str) -> None:
    plot = ElementTree.fromstring(re.search(r"<svg[^>]*one evaluation, batch 1:.*?</svg>", text, re.DOTALL).group())
    bars = [(float(g.find("text[@class='value']").text), float(g.findall("rect")[1].get("width"))) for g in plot]
    lengths = [length / value for value, length in bars]
    assert len(bars) == 9
    assert lengths == pytest.approx([lengths[0]] * 9, rel=0.01)


def hostile_report(report: Report) -> Report:
    rows = tuple(
        replace(row, id=f"{HOSTILE}{k}", contender=f"{HOSTILE}{row.contender}", group=f"{HOSTILE}{row.group}",
                suite=f"{HOSTILE}{row.suite}", command=HOSTILE, note=HOSTILE)
        for k, row in enumerate(report.rows)
    )  # fmt: skip
    sections = {name: [_hostile(entry) for entry in entries] for name, entries in report.sections.items()}
    machine = {"cpu": {"model": HOSTILE}, HOSTILE: HOSTILE}
    skipped = ({"what": HOSTILE, "reason": HOSTILE},)
    changes: dict[str, Any] = {"name": HOSTILE, "made": HOSTILE, "mode": HOSTILE, "command": HOSTILE}
    return replace(report, rows=rows, sections=sections, machine=machine, skipped=skipped, **changes)


def _hostile(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: HOSTILE if isinstance(value, str) else value for key, value in entry.items()}


def test_hostile_strings_are_shown_and_never_obeyed(report: Report) -> None:
    text = to_page(hostile_report(report))
    page = Page(text)
    assert page.open == []
    assert not LOADING & {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert not re.search("[\x00-\x08\x0b-\x1f]", text)
    assert any("<script>alert(1)</script>" in shown for shown in page.text)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": ()},
        {"machine": {}, "settings": {}, "limits": {}, "model": {}},
        {"sections": {"quality": [{}], "parity_curves": [{}], "cold_start": [{}], "crosschecks": [{}], "export": []}},
        {"sections": {"quality": "none", "sizes": None, "loadgen": [7]}},
    ],
)
def test_report_with_holes_still_makes_a_page(report: Report, change: dict[str, Any]) -> None:
    assert Page(to_page(replace(report, **change))).open == []


def test_cut_run_with_a_single_sample_makes_a_page() -> None:
    assert Page(to_page(small_report(rounds=1))).open == []


def test_style_goes_into_the_wheel(tmp_path: Path) -> None:
    assert (files("ddpm_deploy.bench.report") / "report.css").is_file()
    pytest.importorskip("hatchling", reason="hatchling, which builds the wheel, is not installed here")
    from hatchling.builders.wheel import WheelBuilder

    (wheel,) = WheelBuilder(str(Path(__file__).parents[2])).build(directory=str(tmp_path))
    assert "ddpm_deploy/bench/report/report.css" in zipfile.ZipFile(wheel).namelist()


# -- in a browser -----------------------------------------------------------------------------------------------------


def screenshot(folder: Path, page: str, width: int, height: int) -> np.ndarray:
    """The page as chromium draws it: (height, width, 3)."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed; apt-get install chromium")
    (folder / "page.html").write_text(page, encoding="utf-8")
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}",
        f"--screenshot={folder / 'page.png'}", (folder / "page.html").as_uri(),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return np.asarray(Image.open(folder / "page.png").convert("RGB"))


def test_browser_draws_the_page_with_its_colours_and_cuts_nothing_off(tmp_path: Path, text: str) -> None:
    drawn = screenshot(tmp_path, text, 1280, 3000)
    assert drawn.shape == (3000, 1280, 3)
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x6E, 0x77, 0x81)):  # ours, ours in int8, peers
        assert np.all(drawn == colour, axis=-1).sum() > 1000
    assert np.all(drawn[:, -8:] == 255)  # nothing runs over the right edge
