"""One builder at a time: a file lock that the system frees when its holder dies, however it dies."""

from __future__ import annotations

import importlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddpm_deploy.errors import BackendError

fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None
msvcrt: Any = importlib.import_module("msvcrt") if os.name == "nt" else None

FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
POLL_S = 0.1
MAX_OWNER_BYTES = 300
FAR = 2**30  # Windows locks bytes, which nobody else may then read: one far behind the owner's name

logger = logging.getLogger(__name__)
_held: set[int] = set()


@contextmanager
def build_lock(
    path: Path, what: str, *, timeout_s: float | None = None, tell: Callable[[str], None] = logger.info
) -> Iterator[None]:
    """Hold the lock file at `path` while building `what`, waiting for whoever holds it now.

    timeout_s: None waits for ever, 0 not at all. tell: gets "waiting for pid N, which builds ..." once per owner, and
    the news of an owner that died in mid-build. Raises BackendError after the timeout.
    """
    descriptor = _open(path)
    _held.add(descriptor)
    try:
        _wait(path, descriptor, what, timeout_s, tell)
        if left := _owner(descriptor):
            tell(f"{left[0]} died while it built {left[1]}; taking over")
        _write_owner(descriptor, f"{os.getpid()} {what}")
        try:
            yield
        finally:
            _write_owner(descriptor, "")
            _unlock(descriptor)
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _open(path: Path) -> int:
    try:
        return os.open(path, FLAGS, 0o600)
    except OSError as error:
        raise BackendError(f"{path}: cannot be opened: {error.strerror}; give another cache folder") from error


def _wait(path: Path, descriptor: int, what: str, timeout_s: float | None, tell: Callable[[str], None]) -> None:
    end = None if timeout_s is None else time.monotonic() + timeout_s
    told: tuple[str, str] | None = None
    while not _try_lock(path, descriptor):
        owner = _owner(descriptor)
        if owner and owner != told:
            told = owner
            tell(f"waiting for {owner[0]}, which builds {owner[1]}")
        if end is not None and time.monotonic() >= end:
            who = f"{told[0]} still builds {told[1]}" if told else "another process holds it"
            raise BackendError(
                f"{path}: waited {timeout_s:g} s to build {what}: {who}; wait longer, or end that process"
            )
        time.sleep(POLL_S)


def _try_lock(path: Path, descriptor: int) -> bool:
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            os.lseek(descriptor, FAR, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        raise BackendError(
            f"{path}: cannot be locked: {error.strerror}; this file system has no locks, give another cache folder"
        ) from error
    return True


def _unlock(descriptor: int) -> None:
    """Free the lock at once, also where a forked child has not yet closed its copy."""
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _owner(descriptor: int) -> tuple[str, str] | None:
    """("pid N", what it builds) as the file says, or None."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    pid, _, what = os.read(descriptor, MAX_OWNER_BYTES).decode(errors="replace").partition(" ")
    return (f"pid {pid}", what.strip()) if pid.isdecimal() else None


def _write_owner(descriptor: int, owner: str) -> None:
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, owner.encode()[:MAX_OWNER_BYTES])


def _let_go() -> None:
    """Close the locks in a forked child, which would else keep them after their owner's death."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
