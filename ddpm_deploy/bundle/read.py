"""Reading a bundle: nothing reaches a runtime before its size and hash are checked."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import BinaryIO

from ddpm_deploy.bundle.codec import from_json, from_metadata
from ddpm_deploy.bundle.fields import MAX_JSON_BYTES
from ddpm_deploy.bundle.manifest import MANIFEST_NAME, PORTABLE, TORCH, DataFile, Manifest, ModelFile
from ddpm_deploy.bundle.onnx_metadata import find_metadata, metadata_entries
from ddpm_deploy.errors import BundleError

ATTEMPTS = 10
AGREED = ("schedule", "prediction", "variance", "clip", "sample_shape", "conditions", "output")
ASSETS = Path(__file__).parent.parent / "assets"
PACKAGED = ("digits", "shapes")
# A FIFO in place of a file must not block the reader, a symlink must not lead it out of the folder.
OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk.

    digest: `"sha256:..."` of bundle.json, which holds the hashes of all other files; of the file itself for a
    lone ONNX file.
    """

    root: Path
    manifest: Manifest
    digest: str

    def file(self, role: str, precision: str, target: str | None = None) -> ModelFile:
        """The model file for a role and a precision.

        target: None for the file that every ONNX runtime reads; a runtime's name for the file made for it, or the
        former where there is none ("torch" reads no ONNX). Raises BundleError, naming what there is.
        """
        wanted = (PORTABLE,) if target is None else (target,) if target == TORCH else (target, PORTABLE)
        for name in wanted:
            for file in self.manifest.files:
                if (file.role, file.precision, file.target) == (role, precision, name):
                    return file
        there = ", ".join(f"{f.role} {f.precision} for {f.target}" for f in self.manifest.files)
        raise BundleError(
            f"{self.root}: has no {role} {precision} for {target or PORTABLE}; it has {there}; "
            "choose one of these or export the model with it"
        )

    def path(self, file: ModelFile | DataFile) -> Path:
        """Where the file lies; prefer `open_bytes`, as what lies there may have changed since it was verified."""
        return self.root / file.path

    def open_bytes(self, file: ModelFile | DataFile) -> bytes:
        """Read the file once and check the very bytes that are returned; raises BundleError."""
        data = _contents(self.path(file), file.size_bytes)
        _check(data, self.path(file), file, self.manifest)
        return data


def default_bundle(name: str = PACKAGED[0]) -> Path:
    """Where a pretrained bundle is inside the package: "digits", or "shapes", which draws what a prompt says."""
    if name not in PACKAGED:
        raise ValueError(f"bundle: got {name!r}, expected one of {', '.join(PACKAGED)}")
    return ASSETS / name


def read_bundle(path: str | os.PathLike[str], *, digest: str | None = None, verify: bool = True) -> Bundle:
    """Read and verify a bundle folder, or a lone ONNX file with the manifest in its metadata.

    path: the name of one of the package's own bundles, such as "shapes", will do where there is no such path.
    digest: `"sha256:..."` that the bundle must have. Files that bundle.json does not list are ignored. verify: False
    looks at sizes and at the manifests inside ONNX files, and leaves the hash of each file to `open_bytes`, which
    always checks it: a service then does not read what it never uses. Raises BundleError where anything is missing,
    damaged or not as pinned.
    """
    root = Path(path)
    if str(path) in PACKAGED and not root.exists():
        root = default_bundle(str(path))
        if not root.exists():
            raise BundleError(
                f"{path}: got no such folder, and this installation has no model of that name; "
                f"train it: python examples/{path}_demo.py --install"
            )
    _check_digest_argument(digest)
    if root.is_file():
        return _read_lone(root, digest)
    for _ in range(ATTEMPTS):
        before = _identity(root)
        try:
            return _read_folder(root, digest, verify)
        except BundleError:
            if _identity(root) == before:  # else a writer has put another bundle here meanwhile
                raise
    raise BundleError(f"{root}: was replaced {ATTEMPTS} times while it was read; wait for its writer to end")


def read_onnx_manifest(model: str | os.PathLike[str] | bytes) -> Manifest:
    """The manifest inside an ONNX file, given by path or as bytes; it lists this one file. Raises BundleError."""
    if isinstance(model, bytes):
        return _onnx_manifest(model, "model.onnx")
    path = Path(model)
    return _onnx_manifest(_contents(path), path.name)


def sha256_of(data: bytes) -> str:
    """The digest of some bytes, as `read_bundle` takes it: `"sha256:..."`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _read_folder(root: Path, digest: str | None, verify: bool) -> Bundle:
    if not root.is_dir():
        names = " or ".join(PACKAGED)
        raise BundleError(f"{root}: no such bundle; give a folder with a {MANIFEST_NAME}, an .onnx file, or {names}")
    if not os.path.lexists(root / MANIFEST_NAME):
        raise BundleError(f"{root}: holds no {MANIFEST_NAME}, so it is no bundle; give the folder that export wrote")
    text = _read_small(root / MANIFEST_NAME)
    found = sha256_of(text)
    _check_pin(root, found, digest)
    try:
        manifest = from_json(text)
    except BundleError as error:
        raise BundleError(f"{root}{os.sep}{error}") from None
    for file in manifest.all_files:
        path = root / file.path
        if verify:
            _check(_contents(path, file.size_bytes), path, file, manifest)
        else:
            _check_glance(path, file, manifest)
    return Bundle(root, manifest, found)


def _read_lone(path: Path, digest: str | None) -> Bundle:
    data = _contents(path)
    found = sha256_of(data)
    _check_pin(path, found, digest)
    return Bundle(path.parent, _onnx_manifest(data, path.name), found)


def _onnx_manifest(model: bytes, name: str) -> Manifest:
    file = DataFile(name, len(model), hashlib.sha256(model).hexdigest())
    return from_metadata(find_metadata(model, name), file)


def _read_small(path: Path) -> bytes:
    with _opened(path) as stream:
        data = stream.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise BundleError(f"{path}: is larger than {MAX_JSON_BYTES} bytes; it is no bundle")
    return data


def _check(data: bytes, path: Path, file: ModelFile | DataFile, manifest: Manifest) -> None:
    """Raise BundleError unless these are the bytes of the file, and say of the model what the manifest says."""
    _check_hash(path, hashlib.sha256(data).hexdigest(), file.sha256)
    if path.suffix == ".onnx":
        _check_agrees(data, path, manifest)


def _check_glance(path: Path, file: ModelFile | DataFile, manifest: Manifest) -> None:
    """As `_check`, without reading the weights: the size, and what the file says of the model."""
    with _opened(path, file.size_bytes):
        pass
    if path.suffix == ".onnx" and file.size_bytes:
        with open(path, "rb") as stream:
            _check_agrees(mmap(stream.fileno(), 0, access=ACCESS_READ), path, manifest)


def _check_agrees(model: bytes | mmap, path: Path, manifest: Manifest) -> None:
    """Raise BundleError where the manifest inside an ONNX file says something else than bundle.json.

    A file without one is let through, and so is one that is no ONNX: that is for its runtime to tell.
    """
    try:
        own = find_metadata(model, str(path)) if metadata_entries(model) else None
    except ValueError:
        own = None
    if own is None:
        return
    inside = from_metadata(own, DataFile(str(path), len(model)))
    for name in AGREED:
        if getattr(inside, name) != getattr(manifest, name):
            raise BundleError(
                f"{path}: was exported with another {name} than {MANIFEST_NAME} says, so it would draw wrong samples; "
                "one of them was edited or comes from elsewhere: export the model again"
            )


def _contents(path: Path, size_bytes: int | None = None) -> bytes:
    """All of a regular file, read once and held once; with size_bytes exactly that many bytes."""
    with _opened(path, size_bytes) as stream:
        return stream.read() if size_bytes is None else stream.read(size_bytes)


@contextmanager
def _opened(path: Path, size_bytes: int | None = None) -> Iterator[BinaryIO]:
    """A regular file, never a link, of that size."""
    try:
        with open(os.open(path, OPEN_FLAGS), "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode) or path.is_symlink():
                raise BundleError(f"{path}: is no regular file; links and devices are refused, copy the file here")
            if size_bytes is not None and status.st_size != size_bytes:
                raise _changed(path, f"{status.st_size} bytes", str(size_bytes))
            yield stream
    except FileNotFoundError:
        raise BundleError(f"{path}: is missing; copy the whole bundle or export it again") from None
    except OSError as error:
        linked = path.is_symlink()
        reason = "is a link, which may lead out of the bundle; copy the file here" if linked else error.strerror
        raise BundleError(f"{path}: {reason if linked else f'cannot be read: {reason}'}") from None


def _check_hash(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise _changed(path, f"sha256 {found}", expected)


def _changed(path: Path, found: str, expected: str) -> BundleError:
    return BundleError(
        f"{path}: got {found}, expected {expected}: damaged, or replaced after it was read; "
        "load the bundle again, else copy or export it again"
    )


def _check_pin(path: Path, found: str, digest: str | None) -> None:
    if digest is not None and found != digest:
        raise BundleError(f"{path}: got digest {found}, expected {digest}; this is not the bundle that was pinned")


def _check_digest_argument(digest: str | None) -> None:
    if digest is not None and not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise ValueError(f"digest: got {digest!r}, expected 'sha256:' and 64 hexadecimal digits in lower case")


def _identity(root: Path) -> tuple[int, ...] | None:
    try:
        status = root.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns
