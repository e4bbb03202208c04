"""The page at `/`: plain files, held in memory and sent with headers that let nothing else in."""

from __future__ import annotations

from pathlib import PurePath

from fastapi import FastAPI
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from ddpm_deploy.page import FOLDER, INDEX, page_files

KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_page(app: FastAPI) -> None:
    """Serve the page; its files are no secret, what it asks the service for may be."""
    files = page_files("service")

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return _sent(INDEX, files[INDEX])

    @app.get(f"/{FOLDER}/{{name}}", include_in_schema=False)
    async def file(name: str) -> Response:
        path = f"{FOLDER}/{name}"
        if path not in files:
            raise HTTPException(404, "the page has no such file")
        return _sent(path, files[path])


def _sent(path: str, data: bytes) -> Response:
    return Response(data, media_type=KINDS[PurePath(path).suffix], headers=HEADERS)
