"""Writing files so that they are on the disk when the call returns."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import Any

fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None


def write_new(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a file that must not be there yet. mode: its permissions, from which the process's mask is taken away."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode), "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def flush_folder(folder: Path) -> None:
    """Let the names in a folder reach the disk; Windows opens no folders."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[BufferedRandom]:
    """A file to write and read that takes the place of `path` once it is on the disk, in one step.

    Where the block fails, or the process dies in it, what was at `path` stays. Until the end the file has a hidden name
    and, where the system has them, a lock, by which `sweep` tells the living from the dead.
    """
    stream, unfinished = _open_unfinished(path)
    try:
        with stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            if os.name == "nt":
                stream.close()  # no open file is renamed there
            os.replace(unfinished, path)
        flush_folder(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def sweep(folder: Path, names: str) -> None:
    """Remove the unfinished files that dead writers left of files in a folder; none where the system has no locks.

    names: of the files, a pattern of `glob`.
    """
    for left in folder.glob(f".{names}.*.new"):
        try:
            with left.open("rb") as stream:
                if _lock(stream, wait=False):
                    left.unlink(missing_ok=True)
        except FileNotFoundError:  # finished, or swept by another
            continue


def _open_unfinished(path: Path) -> tuple[BufferedRandom, Path]:
    while True:
        unfinished = path.with_name(f".{path.name}.{os.urandom(8).hex()}.new")
        stream = open(unfinished, "x+b")  # noqa: SIM115
        _lock(stream, wait=True)
        if unfinished.exists():
            return stream, unfinished
        stream.close()  # swept away before it was locked


def _lock(stream: BufferedRandom | BufferedReader, wait: bool) -> bool:
    """Whether the file is locked now; the lock goes with the stream, or with the process."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # somebody else's, or a file system without locks
        return False
    return True
