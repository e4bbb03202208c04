"""The page of the service in Chromium: chosen, watched, copied, by mouse and by keyboard, and in trouble."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the HTTP service needs it")
pytest.importorskip("uvicorn", reason="the HTTP service needs it")

from numpy_network import PATIENCE_S, numpy_sampler, prompted_sampler
from numpy_service import serving
from PIL import Image
from web_browser import chromium, visit

from ddpm_deploy.noise import initial_noise
from ddpm_deploy.page import ARTISTS, page_files
from ddpm_deploy.serve.limits import Limits

PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 800}
READABLE = 4.5  # contrast of text by WCAG 2, level AA


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[Any, ...]]:
    """A guided service of grey pictures with three labels."""
    sampler = numpy_sampler(labelled=True, shape=(1, 4, 4))
    with serving(sampler, limits=Limits(max_n=6, max_steps=50), capacity=6) as (client, engine, _):
        yield sampler, client, engine


@pytest.fixture
def page(browser: Any, service: Any) -> Iterator[Any]:
    """The page, ready, with a clipboard that the test can read."""
    with visit(browser, address(service), viewport=DESK) as opened:
        ready(opened)
        yield opened


def address(service: Any) -> str:
    return f"http://127.0.0.1:{service[1].port}/"


def ready(page: Any) -> None:
    page.locator("#status.ready").wait_for()
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")


def draw(page: Any) -> None:
    page.get_by_role("button", name="Draw", exact=True).click()


def pixels(page: Any, selector: str) -> list[np.ndarray]:
    sources = [image.get_attribute("src") for image in page.locator(selector).all()]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))) for source in sources]


def eventually(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# -- to draw ----------------------------------------------------------------------------------------------------------


def test_somebody_chooses_watches_and_keeps_pictures(page: Any, service: Any) -> None:
    sampler, client, _ = service
    assert page.get_by_role("heading", name="numpy").is_visible()
    page.get_by_label("b", exact=True).check(force=True)
    page.get_by_role("spinbutton", name="Pictures").fill("2")
    page.get_by_label("Seed").fill("11")
    sampler.backend.gate.shut()
    draw(page)
    sampler.backend.gate.let(3)
    page.locator("#tiles img[alt='b, unfinished']").first.wait_for()
    assert 0 < page.locator("#tiles progress").first.evaluate("bar => bar.value") < 1
    page.get_by_text("Drawing 2, 0 waiting").wait_for()
    unfinished = pixels(page, "#tiles img")
    sampler.backend.gate.open()
    page.locator("#gallery li").wait_for()
    answer = client.post(n=2, label="b", seed=11, guidance=2)
    for shown, kept, early, expected in zip(
        pixels(page, "#tiles img"), pixels(page, "#gallery img"), unfinished, answer.pixels, strict=True
    ):
        assert np.array_equal(shown, expected)
        assert np.array_equal(kept, expected)
        assert not np.array_equal(early, expected)
    assert page.locator("#progress").inner_text().startswith("2 pictures in ")
    assert "ddim · 10 steps · guidance 2 · seed 11" in page.locator("#gallery .caption").inner_text()
    page.get_by_text("Ready, nothing waiting").wait_for()


def test_what_is_copied_draws_the_same_pictures(page: Any, tmp_path: Path) -> None:
    page.locator("#solver").select_option("heun")
    page.locator("#steps").press("Home")
    for label in "ca":
        page.get_by_label(label, exact=True).check(force=True)
    draw(page)
    page.get_by_role("button", name="Copy as curl").wait_for()
    expected = pixels(page, "#gallery img")
    assert len(expected) == 4
    for language, command in (("curl", ["bash", "-c"]), ("Python", [sys.executable, "-c"])):
        if shutil.which(command[0]) is None or (language == "curl" and shutil.which("curl") is None):
            pytest.skip(f"{language}: bash and curl are needed")
        page.get_by_role("button", name=f"Copy as {language}").click()
        folder = tmp_path / language
        folder.mkdir()
        subprocess.run([*command, page.evaluate("window.copied")], cwd=folder, check=True, timeout=PATIENCE_S)
        for i, picture in enumerate(expected):
            assert np.array_equal(np.asarray(Image.open(folder / f"picture-{i}.png")), picture)


def test_a_prompt_is_quoted_for_any_shell(page: Any) -> None:
    prompt = """it's "$HOME" `pwd` \\ ünïcode\n!"""
    asked = {"n": 1, "solver": "ddim", "steps": 10, "seed": 2**53 - 1, "guidance": 1, "labels": [], "prompt": prompt}
    model = {"default": {"solver": "ddim", "steps": 10}}
    for language in ("curl", "python"):
        text = page.evaluate(
            f"async ([asked, model]) => (await import('./page/copies.js')).{language}(asked, model)", [asked, model]
        )
        if language == "curl":
            words = shlex.split(text)
            sent = json.loads(words[words.index("-d") + 1])
        else:
            sent = eval(next(line for line in text.splitlines() if line.startswith("body = ")).removeprefix("body = "))
        assert sent == {"prompt": prompt, "n": 1, "seed": 2**53 - 1}


def test_a_class_with_a_comma_goes_by_its_number_and_none_is_sent_that_is_not_drawn(page: Any) -> None:
    asked = {"n": 2, "solver": "ddim", "steps": 10, "seed": 1, "guidance": 1, "labels": ["b", "c, d", "a"]}
    model = {"default": {"solver": "ddim", "steps": 10}, "labels": {"classes": ["a", "b", "c, d"]}}
    body = "async ([asked, model]) => (await import('./page/copies.js')).body(asked, model)"
    assert page.evaluate(body, [asked, model]) == {"label": "b,2", "n": 2, "seed": 1}


def test_a_kept_request_is_put_back_into_the_form(page: Any) -> None:
    page.get_by_label("c", exact=True).check(force=True)
    page.locator("#guidance").press("End")
    draw(page)
    page.get_by_role("button", name="Use again").wait_for()
    page.get_by_label("c", exact=True).uncheck(force=True)
    page.locator("#guidance").press("Home")
    page.get_by_role("button", name="Use again").click()
    assert page.get_by_label("c", exact=True).is_checked()
    assert page.locator("#guidance-value").inner_text() == "8"
    assert page.locator("#seed").input_value().isdecimal()
    assert page.evaluate("document.activeElement.id") == "draw"


def test_a_prompt_is_read_where_the_model_reads_text(browser: Any) -> None:
    with serving(prompted_sampler()) as (client, *_), visit(browser, f"http://127.0.0.1:{client.port}/") as page:
        ready(page)
        assert "big, blue, cat, dog" in page.locator("#prompt-hint").inner_text()
        page.get_by_label("Prompt").fill("a Blue cow")
        assert page.locator("#prompt-hint").inner_text().startswith("It was not taught: a, cow.")
        page.get_by_label("Prompt").fill("blue cat")
        assert "taught" not in page.locator("#prompt-hint").inner_text()
        page.get_by_role("spinbutton", name="Pictures").fill("1")
        page.get_by_label("Seed").fill("3")
        page.get_by_label("Prompt").press("Enter")
        page.locator("#gallery li").wait_for()
        (expected,) = client.post(prompt="blue cat", seed=3, guidance=2).pixels
        assert np.array_equal(pixels(page, "#gallery img")[0], expected)
        assert page.locator("#gallery strong").inner_text() == "blue cat"


def test_a_field_that_was_wrong_may_be_put_right(page: Any) -> None:
    page.get_by_label("Seed").fill(str(2**53))
    page.get_by_role("button", name="Draw").click()
    assert page.locator("#seed").evaluate("field => field.validationMessage") == f"A whole number up to {2**53 - 1}"
    page.get_by_label("Seed").fill("7")
    count = page.get_by_role("spinbutton", name="Pictures")
    count.fill("1")
    for label in "abc":
        page.get_by_label(label, exact=True).check(force=True)
    page.get_by_role("button", name="Draw").click()
    assert count.evaluate("field => field.validationMessage") == "At least 3, one for each label"
    count.fill("3")
    page.get_by_role("button", name="Draw").click()
    page.locator("#gallery li").wait_for()
    assert "seed 7" in page.locator("#gallery .caption").inner_text()


# -- for everybody ----------------------------------------------------------------------------------------------------


def test_the_keyboard_is_enough(page: Any) -> None:
    passed = []
    while "draw" not in passed:
        page.keyboard.press("Tab")
        passed.append(page.evaluate("document.activeElement.id || document.activeElement.value || 'skip'"))
        assert len(passed) < 20
        if passed[-1] == "b":
            page.keyboard.press("Space")
        outline = page.evaluate(
            "getComputedStyle(document.activeElement.nextElementSibling?.matches('.chip span') "
            "? document.activeElement.nextElementSibling : document.activeElement).outlineStyle"
        )
        assert outline != "none", passed[-1]
    assert passed == ["skip", "a", "b", "c", "guidance", "solver", "n", "steps", "seed", "live", "draw"]
    page.keyboard.press("Enter")
    page.locator("#gallery li").wait_for()
    assert page.locator("#gallery strong").inner_text() == "b"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Save picture 1: b"


def test_escape_stops_and_the_engine_is_free(page: Any, service: Any) -> None:
    sampler, _, engine = service
    sampler.backend.gate.shut()
    try:
        draw(page)
        sampler.backend.gate.await_call()
        page.keyboard.press("Escape")
        page.get_by_text("Stopped.").wait_for()
    finally:
        sampler.backend.gate.open()
    eventually(lambda: engine.held == 0)
    assert not page.locator("#gallery li").count()


def test_every_control_has_a_name_and_news_are_announced(page: Any) -> None:
    nameless = page.evaluate("""() => [...document.querySelectorAll("input, select, textarea, button, progress")]
        .filter((each) => !(each.labels?.length || each.matches("[aria-label], [aria-labelledby]")
            || each.textContent.trim()))
        .map((each) => each.outerHTML)""")
    assert nameless == []
    assert page.locator("#progress").get_attribute("aria-live") == "polite"
    assert page.locator("#alert").get_attribute("role") == "alert"
    assert page.evaluate("document.documentElement.lang") == "en"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_can_be_read(browser: Any, service: Any, scheme: str) -> None:
    with visit(browser, address(service), viewport=PHONE, color_scheme=scheme) as page:
        ready(page)
        draw(page)
        page.locator("#gallery li").wait_for()
        assert page.evaluate("document.scrollingElement.scrollWidth") == PHONE["width"]
        small = page.evaluate("""() => [...document.querySelectorAll("main button, main select, main .chip")]
            .map((each) => each.getBoundingClientRect()).filter(({ width, height }) => width && height < 32).length""")
        assert small == 0
        colours = page.evaluate("""() => Object.fromEntries(["paper", "card", "wash", "ink", "quiet", "accent",
            "accent-ink"].map((name) => [name, getComputedStyle(document.documentElement)
            .getPropertyValue(`--${name}`).trim()]))""")
    pairs = [("ink", "paper"), ("quiet", "paper"), ("ink", "wash"), ("accent", "wash"), ("quiet", "card")]
    for text, ground in [*pairs, ("accent-ink", "accent")]:
        assert contrast(colours[text], colours[ground]) >= READABLE, (text, ground)


def contrast(one: str, other: str) -> float:
    """WCAG 2's ratio of two colours, `#rrggbb`."""
    low, high = sorted(luminance(bytes.fromhex(colour.lstrip("#"))) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def luminance(rgb: bytes) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (byte / 255 for byte in rgb)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_who_wants_less_motion_sees_no_previews(browser: Any, service: Any) -> None:
    with visit(browser, address(service), reduced_motion="reduce") as page:
        ready(page)
        assert not page.get_by_label("Show them denoise").is_checked()
        page.evaluate("""() => { window.seen = new Set(); new MutationObserver(() => document
            .querySelectorAll("#tiles img").forEach((image) => window.seen.add(image.alt)))
            .observe(document.getElementById("tiles"), { subtree: true, childList: true, attributes: true }); }""")
        draw(page)
        page.locator("#gallery li").wait_for()
        assert page.evaluate("[...window.seen]") == ["", *(f"picture {i}" for i in (1, 2, 3, 4))]


# -- in trouble -------------------------------------------------------------------------------------------------------


def test_a_full_queue_is_waited_for(browser: Any, service: Any) -> None:
    sampler, client, _ = service
    with visit(browser, address(service), refused=True) as page:
        ready(page)
        sampler.backend.gate.shut()
        try:
            waiting = threading.Thread(target=client.post, kwargs={"n": 6})
            waiting.start()
            sampler.backend.gate.await_call()
            draw(page)
            page.locator("#alert", has_text="Too much is waiting to be drawn. Trying again by itself in").wait_for()
        finally:
            sampler.backend.gate.open()
        page.locator("#gallery li").wait_for()
        waiting.join(PATIENCE_S)
        assert page.locator("#alert").is_hidden()


def test_a_service_that_ends_is_told_of_in_words(browser: Any) -> None:
    with (
        serving(numpy_sampler(shape=(1, 4, 4))) as (client, engine, _),
        visit(browser, f"http://127.0.0.1:{client.port}/", refused=True) as page,
    ):
        ready(page)
        engine.close()
        draw(page)
        page.locator("#alert", has_text="The service is starting or shutting down.").wait_for()
        page.get_by_role("button", name="Stop").click()
        page.get_by_text("Stopped.").wait_for()
        page.get_by_text("Not ready").wait_for()


def test_what_the_service_refuses_is_said(browser: Any, service: Any) -> None:
    with visit(browser, address(service), refused=True) as page:
        ready(page)
        page.locator("#solver").select_option("heun")
        page.locator("#steps").press("End")
        draw(page)
        page.locator("#alert", has_text="Steps: heun takes 99 evaluations, expected at most 50").wait_for()


def test_what_is_drawn_is_kept_where_another_picture_fails(page: Any, service: Any) -> None:
    sampler, client, _ = service

    def fault(feeds: Any, m: np.ndarray) -> None:
        m[(feeds["x"] == initial_noise(21, [1], (1, 4, 4))).all(axis=(1, 2, 3))] = np.nan

    page.get_by_role("spinbutton", name="Pictures").fill("3")
    page.get_by_label("Seed").fill("21")
    sampler.backend.fault = fault
    try:
        draw(page)
        page.locator("#gallery li").wait_for()
    finally:
        sampler.backend.fault = None
    expected = client.post(n=3, seed=21).pixels
    kept = pixels(page, "#gallery img")
    assert len(kept) == 2
    for found, index in zip(kept, (0, 2), strict=True):
        assert np.array_equal(found, expected[index])
    assert page.locator("#alert").inner_text() == "1 of 3 pictures failed. The service failed to draw this; see its log"
    assert page.locator("#tiles img:visible").count() == 2


def test_a_token_is_asked_for_and_never_copied(browser: Any) -> None:
    sampler = numpy_sampler(shape=(1, 4, 4))
    with (
        serving(sampler, token="open sesame") as (client, *_),
        visit(browser, f"http://127.0.0.1:{client.port}/", refused=True) as page,
    ):
        page.get_by_label("Access token").fill("abracadabra")
        page.get_by_role("button", name="Open").click()
        page.get_by_text("The service does not know this token.").wait_for()
        page.get_by_label("Access token").fill("open sesame")
        page.keyboard.press("Enter")
        ready(page)
        draw(page)
        page.get_by_role("button", name="Copy as curl").click()
        copied = page.evaluate("window.copied")
    assert '"Authorization: Bearer $DDPM_DEPLOY_TOKEN"' in copied
    assert "sesame" not in copied


# -- files ------------------------------------------------------------------------------------------------------------


def test_the_files_come_with_headers_that_let_nothing_else_in(service: Any) -> None:
    client = service[1]
    kinds = {"/": "text/html; charset=utf-8", "/page/page.js": "text/javascript", "/page/icon.svg": "image/svg+xml"}
    for path, kind in kinds.items():
        answer = client.get(path)
        assert answer.status == 200
        assert answer.headers["content-type"].partition(";")[0] == kind.partition(";")[0]
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';")
        assert "unsafe" not in policy
    for path in ("/page/", "/page/nothing.js", "/page/..%2fapp.py", "/page/worker.js"):
        assert client.get(path).status == 404


def test_both_artists_have_the_same_face() -> None:
    names = ("live", "takesToken", "copies", "announced", "open", "watch", "draw")
    sources = [page_files(artist)["page/artist.js"].decode() for artist in ARTISTS]
    for name, source in product(names, sources):
        assert re.search(rf"^export (const|(async )?function\*?) {name}\b", source, re.MULTILINE), name
    shared = [{path for path in page_files(artist) if "artist" not in path} for artist in ARTISTS]
    assert all(one & other >= {"index.html", "page/style.css", "page/page.js"} for one, other in pairwise(shared))
