"""Reading and writing single files of a cache: no links, no half-written file, one clear error."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from ddpm_deploy.bundle.read import OPEN_FLAGS
from ddpm_deploy.durable import flush_folder, write_new
from ddpm_deploy.errors import BackendError


def read_regular(path: Path, max_bytes: int) -> bytes | None:
    """The contents of a regular file, or None where there is none; links, devices and larger files are refused."""
    try:
        with open(os.open(path, OPEN_FLAGS), "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BackendError(f"{path}: is no regular file; remove it")
            if status.st_size > max_bytes:
                raise BackendError(f"{path}: got {status.st_size} bytes, expected at most {max_bytes}; remove it")
            return stream.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = "is a link, which may lead anywhere; remove it" if path.is_symlink() else _cannot("read", error)
        raise BackendError(f"{path}: {reason}") from None


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file that is there as a whole or not at all, readable by its owner only."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.new")
    try:
        write_new(temporary, data, 0o600)
        os.replace(temporary, path)
        flush_folder(path.parent)
    except OSError as error:
        raise BackendError(f"{path}: {_cannot('written', error)}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def open_folder(folder: Path) -> None:
    """Make a private folder, or refuse one that others could put engines into."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise BackendError(f"{folder}: {_cannot('made', error)}") from error
    check_owner(folder, status)


def check_owner(folder: Path, status: os.stat_result) -> None:
    """Raise BackendError where another user owns the folder or everybody may write to it: engines are code."""
    if os.name == "nt":
        return
    if status.st_uid not in (os.geteuid(), 0):
        raise BackendError(
            f"{folder}: belongs to user {status.st_uid}, who could put code there; give a folder of your own"
        )
    if status.st_mode & stat.S_IWOTH:
        raise BackendError(f"{folder}: everybody may write to it, and so put code there; run chmod o-w {folder}")


def _cannot(verb: str, error: OSError) -> str:
    return f"cannot be {verb}: {error.strerror}; give another folder with DDPM_DEPLOY_CACHE, or --cache of build"
