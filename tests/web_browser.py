"""A headless Chromium of this machine, and servers for it to look at."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
PATIENCE_MS = 20_000
REFUSED = ("Failed to load resource: the server responded with a status of",)


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Any file of a folder, as `python -m http.server` sends them."""

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def file_server(folder: Path, headers: dict[str, str] | None = None) -> Iterator[str]:
    """The address of a server of the folder's files, on this machine alone."""

    class Handler(Quiet):
        def end_headers(self) -> None:
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            super().end_headers()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser; skips where it cannot be had, with DDPM_TEST_BACKENDS=chromium fails."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        give_up("playwright is not installed")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        give_up(f"none of {', '.join(NAMES)} found")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


def give_up(reason: str) -> NoReturn:
    """Skip, or fail where the environment says that there has to be a browser."""
    if "chromium" in os.environ.get("DDPM_TEST_BACKENDS", "").split(","):
        pytest.fail(f"DDPM_TEST_BACKENDS requires chromium: {reason}")
    pytest.skip(f"chromium: {reason}")


@contextlib.contextmanager
def visit(browser: Any, url: str, *, refused: bool = False, **options: Any) -> Iterator[Any]:
    """A page in a context of its own; errors in its console, and requests to elsewhere, fail the test.

    refused: the browser notes in the console what a server refuses; that is then no error.
    """
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE_MS)
    page, faults = context.new_page(), []
    page.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    context.on("request", lambda request: None if _is_own(request.url, url) else faults.append(request.url))
    try:
        page.goto(url)
        yield page
    finally:
        context.close()
    assert [fault for fault in faults if not fault.startswith(REFUSED if refused else ())] == []


def _is_own(address: str, url: str) -> bool:
    return address.startswith((url, "data:", f"blob:{url}"))
