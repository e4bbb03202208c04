"""Writing a bundle: whoever reads the folder, and whenever the writer dies, there is the old bundle or the new one.

Everything goes into a hidden folder beside the target, is flushed to the disk, and is then swapped in. On Linux the
swap is one system call. Elsewhere it takes two renames; a writer killed between them leaves the old bundle under its
hidden name, and the next writer puts it back.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import hashlib
import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ddpm_deploy.bundle.codec import from_json, to_json
from ddpm_deploy.bundle.fields import shorten
from ddpm_deploy.bundle.manifest import MANIFEST_NAME, DataFile, Manifest, ModelFile
from ddpm_deploy.bundle.read import Bundle, sha256_of
from ddpm_deploy.durable import flush_folder, write_new
from ddpm_deploy.errors import BundleError

fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None
File = TypeVar("File", ModelFile, DataFile)

SUFFIXES = (".onnx", ".safetensors", ".npz", ".bin")
AT_FDCWD = -100
RENAME_EXCHANGE = 2
AWAY = "move it away or give another name"
REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EROFS: "give a place that can be written",
    errno.EACCES: "give a place that can be written",
    errno.EPERM: "give a place that can be written",
    errno.EBUSY: "it is a mount point: give a folder inside it",
}
UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


def write_bundle(out: str | os.PathLike[str], manifest: Manifest, files: Mapping[str, bytes]) -> Bundle:
    """Write a bundle folder atomically, in place of the bundle that is there.

    files: the bytes of every file that the manifest lists; sizes and hashes are computed from them.
    Raises BundleError, with what was there untouched, where `out` is no bundle or cannot be written.
    """
    text = to_json(_with_hashes(manifest, files)).encode("utf-8")
    target = Path(os.path.realpath(out))
    try:
        install_folder(target, {**files, MANIFEST_NAME: text}, _check_replaceable)
    except OSError as error:
        raise BundleError(f"{out}: cannot be written: {error.strerror}; {write_remedy(error)}") from error
    return Bundle(Path(out), from_json(text), sha256_of(text))


def install_folder(
    target: Path, files: Mapping[str, bytes], check: Callable[[Path], None], beside: Path | None = None
) -> None:
    """Put a folder that holds these files, some perhaps in subfolders, in the place of `target`; raises OSError.

    check: refuses, by an error of its own, to replace what is there. beside: the path, on the same file system, whose
    neighbours the unfinished folders are; None is `target`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = beside or target
    with _sole_writer(beside.parent) as alone:
        if alone:
            _clean(target, beside)
        check(target)
        _replace_folder(target, files, beside)


def check_target(out: str | os.PathLike[str]) -> None:
    """Raise BundleError where `write_bundle` could not write to `out`: for long work, before it starts."""
    target = Path(os.path.realpath(out))
    _check_replaceable(target)
    folder = next(parent for parent in target.parents if parent.exists())
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise BundleError(f"{out}: cannot be written: {error.strerror}; {write_remedy(error)}") from error


def _with_hashes(manifest: Manifest, files: Mapping[str, bytes]) -> Manifest:
    listed = {file.path for file in manifest.all_files}
    if listed != set(files):
        raise BundleError(f"files: got {sorted(files)}, but the manifest lists {sorted(listed)}; give exactly these")
    reference = None if manifest.reference is None else _with_hash(manifest.reference, files)
    return replace(
        manifest,
        files=tuple(_with_hash(file, files) for file in manifest.files),
        weights=tuple(_with_hash(file, files) for file in manifest.weights),
        reference=reference,
    )


def _with_hash(file: File, files: Mapping[str, bytes]) -> File:
    data = files[file.path]
    return replace(file, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


@contextmanager
def _sole_writer(parent: Path) -> Iterator[bool]:
    """Hold the lock of the parent folder, which the system frees when its holder dies; False where it has none."""
    if fcntl is None:
        yield False
        return
    descriptor = os.open(parent, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # network file systems without locks
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _clean(target: Path, beside: Path) -> None:
    """Put back or remove what dead writers left; call it only as the sole writer."""
    if not target.exists():
        for old in beside.parent.glob(_hidden(beside, "*", "old")):
            os.rename(old, target)
            break
    for kind in ("new", "old"):
        for left in beside.parent.glob(_hidden(beside, "*", kind)):
            shutil.rmtree(left, ignore_errors=True)


def _hidden(target: Path, key: str, kind: str) -> str:
    return f".{glob.escape(target.name) if key == '*' else target.name}.{key}.{kind}"


def _check_replaceable(target: Path) -> None:
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise BundleError(f"{target}: is a file, expected a bundle folder or nothing; give another name")
    names = sorted(entry.name for entry in os.scandir(target))
    if names and MANIFEST_NAME not in names:
        raise BundleError(f"{target}: is no bundle (it holds {shorten(names[0])}), so it is not replaced; {AWAY}")
    foreign = set(names) - {MANIFEST_NAME} - _own(target, names)
    if foreign:
        raise BundleError(f"{target}: holds {shorten(min(foreign))}, which is no part of a bundle; {AWAY}")


def _own(target: Path, names: Iterable[str]) -> set[str]:
    """What belongs to the bundle: what it lists; in a damaged one, which may be replaced too, what looks like it."""
    try:
        return {file.path for file in from_json((target / MANIFEST_NAME).read_bytes()).all_files}
    except (BundleError, OSError):
        return {name for name in names if name.endswith(SUFFIXES)}


def _replace_folder(target: Path, files: Mapping[str, bytes], beside: Path) -> None:
    key = os.urandom(8).hex()
    new, old = (beside.with_name(_hidden(beside, key, kind)) for kind in ("new", "old"))
    try:
        new.mkdir()
        for name, data in files.items():
            (new / name).parent.mkdir(exist_ok=True)
            write_new(new / name, data)
        for folder in sorted({(new / name).parent for name in files} | {new}, reverse=True):
            flush_folder(folder)
        if target.exists():
            _swap(new, target, old)
        else:
            os.rename(new, target)
        flush_folder(target.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _swap(new: Path, target: Path, old: Path) -> None:
    """Put `new` in the place of `target`; afterwards `new` is the old folder, or gone."""
    if _exchange(new, target):
        return
    os.rename(target, old)
    try:
        os.rename(new, target)
    except OSError:
        os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one system call; False where the system or the file system cannot (Linux 3.15 can)."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if renameat2 is None:
        return False
    if renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(other))


def write_remedy(error: OSError) -> str:
    """What to do about a file system that refused."""
    remedy = REMEDIES.get(error.errno or 0, "give another place")
    return f"{remedy}; what was there is untouched"
