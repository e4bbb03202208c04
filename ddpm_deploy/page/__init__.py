"""The page: one form and one gallery, which a service draws for, or the browser itself."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent
INDEX, FOLDER = "index.html", "page"
ARTISTS = ("service", "browser")


def page_files(artist: str) -> dict[str, bytes]:
    """Every file of the page by its path beside `index.html`. artist: who draws, one of `ARTISTS`."""
    if artist not in ARTISTS:
        raise ValueError(f"artist: got {artist!r}, expected one of {', '.join(ARTISTS)}")
    files = {INDEX: (ROOT / INDEX).read_bytes()}
    for folder in (ROOT / "shared", ROOT / artist):
        files |= {f"{FOLDER}/{path.name}": path.read_bytes() for path in sorted(folder.iterdir())}
    return files
