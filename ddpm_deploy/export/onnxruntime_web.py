"""onnxruntime-web as it is vendored into a page: one pinned version of npm, whose bytes are checked."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from ddpm_deploy.errors import ExportError

PACKAGE, PINNED = "onnxruntime-web", "1.30.0"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
NPM = ("npm", "pack", "--ignore-scripts", "--loglevel=error")
PATIENCE_S = 300
LOCAL = f"give a copy: --onnxruntime-web FOLDER, or the file {PACKAGE}-{PINNED}.tgz"
NOTICE = """{package} {version}, unchanged: {files}
https://www.npmjs.com/package/{package}

MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def runtime_files(source: str | os.PathLike[str] | None = None) -> dict[str, bytes]:
    """The files that a page loads, and their licence, by name; raises ExportError where they cannot be had.

    source: the package as npm unpacks it, such as `node_modules/onnxruntime-web`, or its .tgz, whose bytes are checked;
    None fetches that with npm.
    """
    if source is None:
        version, files = PINNED, _unpacked(_fetched())
    elif Path(source).suffix == ".tgz":
        version, files = PINNED, _unpacked(_read(Path(source)))
    else:
        version, files = _version(Path(source)), {name: _read(Path(source) / "dist" / name) for name in FILES}
    notice = NOTICE.format(package=PACKAGE, version=version, files=", ".join(FILES))
    return {**files, f"{PACKAGE}.LICENCE.txt": notice.encode()}


def _fetched() -> bytes:
    if shutil.which(NPM[0]) is None:
        raise ExportError(f"{PACKAGE}: npm was not found, which fetches it; install Node.js, or {LOCAL}")
    with tempfile.TemporaryDirectory() as folder:
        command = [*NPM, f"{PACKAGE}@{PINNED}"]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        except subprocess.TimeoutExpired:
            raise ExportError(f"{PACKAGE}: npm took over {PATIENCE_S} s; look at the network, or {LOCAL}") from None
        if done.returncode != 0:
            said = " ".join(done.stderr.split())[:200]
            raise ExportError(f"{PACKAGE}: npm could not fetch it ({said}); look at the network, or {LOCAL}")
        return _read(Path(folder) / f"{PACKAGE}-{PINNED}.tgz")


def _unpacked(archive: bytes) -> dict[str, bytes]:
    got = f"sha512-{base64.b64encode(hashlib.sha512(archive).digest()).decode()}"
    if got != INTEGRITY:
        raise ExportError(
            f"{PACKAGE}: got an archive of {got}, expected {INTEGRITY} of version {PINNED}; fetch it again"
        )
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as members:
        return {name: _member(members, f"package/dist/{name}") for name in FILES}


def _member(members: tarfile.TarFile, name: str) -> bytes:
    stream = members.extractfile(name)
    assert stream is not None  # the archive is the very one that is pinned
    return stream.read()


def _version(folder: Path) -> str:
    try:
        said = json.loads(_read(folder / "package.json"))
        if said["name"] == PACKAGE:
            return str(said["version"])
    except (ValueError, KeyError, TypeError):
        pass
    raise ExportError(f"{folder}: is no copy of {PACKAGE}; give the folder that holds its package.json")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ExportError(
            f"{path}: cannot be read: {error.strerror}; expected a copy of {PACKAGE}, as npm installs it"
        ) from error
