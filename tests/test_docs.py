"""The guide says nothing that the repository does not have, and both languages say the same."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
ENGLISH, CHINESE = DOCS / "theory.md", DOCS / "theory.zh.md"
THEORY = [ENGLISH, CHINESE]
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
MAX_IMAGE_BYTES = 150_000

LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
DISPLAY = re.compile(r"^\$\$\n(.*?)\n\$\$$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"\$([^$\n]+)\$")


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def display_formulas(page: Path) -> list[str]:
    return DISPLAY.findall(prose(page))


def inline_formulas(page: Path) -> list[str]:
    return INLINE.findall(re.sub(r"`[^`]*`", "", DISPLAY.sub("", prose(page))))


def links(page: Path) -> list[tuple[str, str]]:
    """(text, target) of links and pictures to files of this repository."""
    found = [(text, target) for _, text, target in LINK.findall(prose(page))]
    return [(text, target) for text, target in found if "://" not in target and not target.startswith("mailto:")]


def slugs(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-") for heading in headings}


def defines(path: Path, name: str) -> bool:
    """Whether a Python file defines `name`, or `Class.name`."""
    body: list[ast.stmt] = ast.parse(path.read_text(encoding="utf-8")).body
    for part in name.split("."):
        nodes = {n.name: n for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        if part not in nodes:
            return False
        body = nodes[part].body
    return True


# -- links and names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files_and_headings(page):
    broken = []
    for _, target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in slugs(file)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_code_name_linked_to_a_python_file_is_defined_there(page):
    named = [(text.strip("`"), target) for text, target in links(page) if target.endswith(".py") and "`" in text]
    missing = [
        (name, target)
        for name, target in named
        if name != Path(target).name and not defines(page.parent / target, name.removesuffix("()"))
    ]
    assert not missing


@pytest.mark.parametrize("page", THEORY, ids=lambda page: page.name)
def test_the_theory_names_at_least_forty_functions(page):
    assert sum(target.endswith(".py") for _, target in links(page)) >= 40


@pytest.mark.parametrize("page", THEORY, ids=lambda page: page.name)
def test_dotted_names_of_the_package_can_be_imported(page):
    for module, names in re.findall(r"from (ddpm_deploy[\w.]*) import ([\w, ]+)", page.read_text(encoding="utf-8")):
        for name in names.split(","):
            assert hasattr(importlib.import_module(module), name.strip())


@pytest.mark.parametrize("page", THEORY, ids=lambda page: page.name)
def test_a_python_block_prints_the_text_block_after_it(page):
    blocks = FENCE.findall(page.read_text(encoding="utf-8"))
    pairs = [(code, text) for (kind, code), (after, text) in pairwise(blocks) if kind == "python"]
    assert pairs
    for code, text in pairs:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, page.name, "exec"), {})
        assert printed.getvalue() == text


@pytest.mark.parametrize("page", THEORY, ids=lambda page: page.name)
def test_the_worked_example_follows_from_its_own_table(page):
    text = page.read_text(encoding="utf-8")
    alpha_t, alpha_s, e_minus_h = 1 / 6.36, 1 / 1.0309, 0.25062 / 6.2809
    scale = alpha_s * (1 - e_minus_h)
    assert f"={0.25062 * alpha_s / (6.2809 * alpha_t):.5f}$" in text
    assert f"={scale:.4f}$" in text
    x, d1, d = map(float, re.search(r"x = ([\d.]+) x - ([\d.]+) d1 \+ ([\d.]+) d;", text).groups())
    assert (x, d1, d) == pytest.approx((0.25062 * alpha_s / (6.2809 * alpha_t), scale / 2, 1.5 * scale), rel=1e-4)


# -- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pictures_exist_and_have_a_description(page):
    for mark, text, target in LINK.findall(prose(page)):
        if mark and "://" not in target:
            assert text, f"{target} has no description"
            assert (page.parent / target).is_file()


def test_the_pictures_of_the_theory_are_small():
    sizes = {target: (DOCS / target).stat().st_size for mark, _, target in LINK.findall(prose(ENGLISH)) if mark}
    assert sizes
    assert max(sizes.values()) < MAX_IMAGE_BYTES


def test_the_theory_shows_every_figure_of_the_script_and_no_other(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    figures = importlib.import_module("make_figures").FIGURES
    for page in THEORY:
        shown = [target for mark, _, target in LINK.findall(prose(page)) if mark]
        assert sorted(shown) == sorted(f"img/{name}.png" for name in figures)


def test_the_figure_script_draws_what_is_committed(tmp_path):
    names = ("dice", "forward", "posterior", "spacings")
    command = [sys.executable, str(DOCS / "make_figures.py"), *names, "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    for name in names:
        drawn, committed = (
            np.asarray(Image.open(folder / f"{name}.png").convert("L"), dtype=float)
            for folder in (tmp_path, DOCS / "img")
        )
        assert drawn.shape == pytest.approx(committed.shape, rel=0.02)
        if drawn.shape == committed.shape:  # fonts differ a little between versions of matplotlib
            assert np.abs(drawn - committed).mean() < 6
        assert drawn.std() > 20


def test_the_figure_script_refuses_an_unknown_name(tmp_path):
    command = [sys.executable, str(DOCS / "make_figures.py"), "moon", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "got 'moon', expected some of dice" in done.stderr


# -- two languages, one text ------------------------------------------------------------------------------------------


def test_both_languages_have_the_same_headings():
    levels = [re.findall(r"^(#+) (\d*)", prose(page), re.MULTILINE) for page in THEORY]
    assert levels[0] == levels[1]


def test_both_languages_have_the_same_formulas():
    def without_words(formula):
        return re.sub(r"\\text\{[^}]*\}", "", formula)

    english, chinese = ([without_words(f) for f in display_formulas(page)] for page in THEORY)
    assert english == chinese
    assert len(english) > 25
    assert Counter(inline_formulas(ENGLISH)) == Counter(inline_formulas(CHINESE))


def test_both_languages_have_the_same_pictures_links_and_code():
    assert Counter(target for _, target in links(ENGLISH) if target != "theory.zh.md") == Counter(
        target for _, target in links(CHINESE) if target != "theory.md"
    )
    assert FENCE.findall(ENGLISH.read_text(encoding="utf-8")) == FENCE.findall(CHINESE.read_text(encoding="utf-8"))


def test_both_languages_have_the_same_tables():
    rows = [[line.count("|") for line in prose(page).splitlines() if line.startswith("|")] for page in THEORY]
    assert rows[0] == rows[1]


# -- formulas that GitHub renders -------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", THEORY, ids=lambda page: page.name)
def test_formulas_avoid_what_github_takes_for_markdown(page):
    for formula in [*display_formulas(page), *inline_formulas(page)]:
        assert not re.search(r"\\[!-/:-@\[-`{-~]", formula), f"a backslash before punctuation is dropped: {formula}"
        assert not re.search(r"[})\]]_", formula), f"an underscore after a bracket may start italics: {formula}"
        assert not re.search(r"[<>*#%]", formula), f"taken for HTML, emphasis or a comment: {formula}"
        assert formula.count("{") == formula.count("}")


@pytest.mark.parametrize("page", THEORY, ids=lambda page: page.name)
def test_inline_formulas_stand_where_github_sees_them(page):
    text = re.sub(r"`[^`]*`", "`code`", DISPLAY.sub("", prose(page)))
    assert text.count("$") == 2 * len(INLINE.findall(text))
    for match in INLINE.finditer(text):
        before, after = text[match.start() - 1], text[match.end()]
        assert before in " \n", f"needs a space before: {match[0]}"
        assert not after.isascii() or not after.isalnum(), f"needs a space after: {match[0]}"
        assert match[1] == match[1].strip(), f"no spaces inside the dollars: {match[0]}"
