"""A run's files: `report.json` for programs, `report.md` and `report.html` for people."""

from __future__ import annotations

from pathlib import Path

from ddpm_deploy.bench.record import FILE, Report, write_report
from ddpm_deploy.bench.report.html import to_page
from ddpm_deploy.bench.report.markdown import to_markdown

MARKDOWN, HTML = "report.md", "report.html"


def write_all(report: Report, folder: Path) -> list[Path]:
    """Write all three, and say where."""
    folder.mkdir(parents=True, exist_ok=True)
    write_report(report, folder / FILE)
    return [folder / FILE, *write_pages(report, folder)]


def write_pages(report: Report, folder: Path) -> list[Path]:
    """Write what people read."""
    (folder / MARKDOWN).write_text(to_markdown(report), encoding="utf-8")
    (folder / HTML).write_text(to_page(report), encoding="utf-8")
    return [folder / MARKDOWN, folder / HTML]
