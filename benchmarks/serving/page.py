"""A command's output in a page, between two marks that name the command."""

from __future__ import annotations

from pathlib import Path


def into(path: Path, command: str, text: str) -> None:
    """Replace what is between the marks of a command; ValueError where they are not there."""
    begin, end = marks(command)
    before, found, rest = path.read_text("utf-8").partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"{path}: expected the lines {begin} and {end}")
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", "utf-8")


def marks(command: str) -> tuple[str, str]:
    """The lines around a command's output."""
    return f"<!-- measured: {command} -->", f"<!-- {command}: end -->"
