"""Photograph the page of the service into docs/img/page.png: `python docs/make_page_picture.py`.

Needs playwright and a Chromium, and no network.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

OUT = Path(__file__).parent / "img" / "page.png"
SERVE = (sys.executable, "-m", "ddpm_deploy.serve", "shapes", "--port", "0")
DRAWN = (("a yellow cross left of a purple circle", 5), ("a green triangle above a red square", 2))
COLOURS = 128


@contextlib.contextmanager
def service() -> Iterator[str]:
    """The address of a service that ends with the block."""
    process = subprocess.Popen(SERVE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        said = re.search(r"http://[^;]+", process.stdout.readline())
        if said is None:
            raise SystemExit("the service did not start")
        yield said.group()
    finally:
        process.terminate()
        process.wait()


def draw(page: Any, prompt: str, seed: int, kept: int) -> None:
    """Ask for the pictures as a person does, and wait until `kept` requests are in the gallery."""
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_label("Seed").fill(str(seed))
    page.get_by_role("button", name="Draw").click()
    page.locator(f"#gallery > li:nth-child({kept})").wait_for()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="default: the one on the path")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    given = parser.parse_args()
    with service() as address, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=given.chromium, args=["--no-sandbox"])
        size = {"width": given.width, "height": 800}
        page = browser.new_page(viewport=size, color_scheme=given.scheme)
        page.goto(address)
        page.locator("#status.ready").wait_for()
        page.locator("#guidance").fill("4")
        for i, (prompt, seed) in enumerate(DRAWN):
            draw(page, prompt, seed, i + 1)
        page.get_by_text("Ready, nothing waiting").wait_for()
        page.evaluate("document.activeElement.blur()")
        taken = page.screenshot(full_page=True)
        browser.close()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    Image.open(io.BytesIO(taken)).convert("RGB").quantize(COLOURS).save(given.out, optimize=True)
    print(f"wrote {given.out}, {given.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
