from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundle_samples import GRAPH, REFERENCE, WEIGHTS, sample_files, sample_manifest

from ddpm_deploy.bundle import Bundle, read_bundle, write_bundle
from ddpm_deploy.bundle import read as reading
from ddpm_deploy.errors import BundleError

HERE = Path(__file__).parent


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "b", sample_manifest(), sample_files())
    return tmp_path / "b"


def edit(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    members = json.loads((bundle / "bundle.json").read_text())
    change(members)
    (bundle / "bundle.json").write_text(json.dumps(members))


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def replace_by_link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def point_outside(bundle: Path) -> None:
    (bundle.parent / "secret").write_bytes(b"graph")
    edit(bundle, lambda members: members["files"][0].update(path="../secret"))


def wrong_hash(bundle: Path) -> None:
    edit(bundle, lambda members: members["files"][0].update(sha256=hashlib.sha256(b"other").hexdigest()))


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "graph truncated": (lambda b: truncate(b / GRAPH), f"{GRAPH}: got 4 bytes, expected 5"),
    "graph grown": (lambda b: (b / GRAPH).write_bytes(b"graph!"), f"{GRAPH}: got 6 bytes, expected 5"),
    "graph bit flipped": (lambda b: flip_bit(b / GRAPH), f"{GRAPH}: got sha256"),
    "weights bit flipped": (lambda b: flip_bit(b / WEIGHTS), f"{WEIGHTS}: got sha256"),
    "reference bit flipped": (lambda b: flip_bit(b / REFERENCE), f"{REFERENCE}: got sha256"),
    "graph missing": (lambda b: (b / GRAPH).unlink(), f"{GRAPH}: is missing; copy the whole bundle or export it again"),
    "graph is a link": (lambda b: replace_by_link(b / GRAPH), f"{GRAPH}: is a link, which may lead out of the bundle"),
    "graph is a fifo": (lambda b: replace_by_fifo(b / GRAPH), f"{GRAPH}: is no regular file"),
    "graph is a folder": (lambda b: replace_by_folder(b / GRAPH), f"{GRAPH}: "),
    "path leaves the folder": (point_outside, "files[0].path: got '../secret', expected a plain file name"),
    "hash is wrong": (wrong_hash, f"{GRAPH}: got sha256"),
    "json truncated": (lambda b: truncate(b / "bundle.json") or truncate(b / "bundle.json"), "bundle.json: "),
    "json empty": (lambda b: (b / "bundle.json").write_bytes(b""), "the file is damaged, copy or export it again"),
    "json missing": (lambda b: (b / "bundle.json").unlink(), "holds no bundle.json, so it is no bundle"),
    "json is a link": (lambda b: replace_by_link(b / "bundle.json"), "bundle.json: is a link"),
    "folder missing": (
        shutil.rmtree,
        "no such bundle; give a folder with a bundle.json, an .onnx file, or digits or shapes",
    ),
}
needs_posix = {"graph is a link", "graph is a fifo", "json is a link"}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_bundle_is_refused_before_any_runtime_is_touched(
    bundle: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="shows that the runtime is not called")
    from ddpm_deploy.sampler import Sampler

    if damage in needs_posix and os.name != "posix":
        pytest.skip("makes links and pipes: POSIX only")
    touched: list[Any] = []
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *args, **options: touched.append(args))
    harm, message = DAMAGES[damage]
    harm(bundle)
    unused = damage in ("weights bit flipped", "reference bit flipped")  # by the runtime that is opened
    for attempt in (read_bundle,) if unused else (read_bundle, Sampler.load):
        with pytest.raises(BundleError) as caught:
            attempt(bundle)
        assert message in str(caught.value)
        assert str(bundle) in str(caught.value)
    assert not touched


def test_reading_imports_no_runtime(bundle: Path) -> None:
    flip_bit(bundle / GRAPH)
    program = (
        "import sys\nfrom ddpm_deploy.bundle import read_bundle\nfrom ddpm_deploy.errors import BundleError\n"
        "try:\n    read_bundle(sys.argv[1])\nexcept BundleError:\n    pass\nelse:\n    raise SystemExit('accepted')\n"
        "loaded = {'torch', 'onnx', 'onnxruntime', 'openvino', 'tensorrt', 'safetensors'} & set(sys.modules)\n"
        "raise SystemExit(str(loaded) if loaded else 0)"
    )
    env = os.environ | {"PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, "-c", program, str(bundle)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_right_digest_is_accepted_and_any_other_refused(bundle: Path) -> None:
    digest = read_bundle(bundle).digest
    assert digest == "sha256:" + hashlib.sha256((bundle / "bundle.json").read_bytes()).hexdigest()
    assert read_bundle(bundle, digest=digest).digest == digest
    other = "sha256:" + "0" * 64
    with pytest.raises(BundleError, match=f"got digest {digest}, expected {other}; this is not the bundle"):
        read_bundle(bundle, digest=other)


def test_pinned_digest_detects_a_consistent_forgery(bundle: Path) -> None:
    digest = read_bundle(bundle).digest
    write_bundle(bundle, sample_manifest(), sample_files(b"forged"))
    read_bundle(bundle)
    with pytest.raises(BundleError, match="not the bundle that was pinned"):
        read_bundle(bundle, digest=digest)


@pytest.mark.parametrize(
    "digest", ["", "sha256:", "0" * 64, "SHA256:" + "0" * 64, "sha256:" + "g" * 64, "md5:" + "0" * 32]
)
def test_malformed_digest_is_a_value_error(bundle: Path, digest: str) -> None:
    with pytest.raises(ValueError, match=r"digest: got .*, expected 'sha256:' and 64 hexadecimal digits"):
        read_bundle(bundle, digest=digest)


def test_file_replaced_after_reading_is_refused_when_it_is_opened(bundle: Path) -> None:
    read = read_bundle(bundle)
    (bundle / GRAPH).write_bytes(b"grapH")
    with pytest.raises(BundleError, match="replaced after it was read"):
        read.open_bytes(read.file("denoiser", "fp32"))


def test_open_bytes_checks_the_bytes_that_it_returns(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is opened once: a second opening, which could see other bytes, never happens."""
    read = read_bundle(bundle)
    opened: list[Any] = []
    open_once = os.open
    monkeypatch.setattr(reading.os, "open", lambda path, *rest: opened.append(path) or open_once(path, *rest))
    assert read.open_bytes(read.manifest.files[1]) == sample_files()[WEIGHTS]
    assert opened == [bundle / WEIGHTS]


def test_unlisted_files_are_ignored(bundle: Path) -> None:
    digest = read_bundle(bundle).digest
    (bundle / "README.md").write_text("a note")
    assert read_bundle(bundle).digest == digest


def test_link_to_the_folder_is_followed(bundle: Path) -> None:
    (bundle.parent / "latest").symlink_to("b")
    assert read_bundle(bundle.parent / "latest").manifest == read_bundle(bundle).manifest


def test_oversized_json_is_refused_without_reading_it_whole(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_JSON_BYTES", 100)
    with pytest.raises(BundleError, match="larger than 100 bytes; it is no bundle"):
        read_bundle(bundle)


def test_file_prefers_the_one_made_for_the_runtime(bundle: Path) -> None:
    read = read_bundle(bundle)
    own = dataclasses.replace(read.manifest.files[0], path="denoiser.fp32.openvino.onnx", target="openvino")
    manifest = dataclasses.replace(read.manifest, files=(*read.manifest.files, own))
    both = Bundle(read.root, manifest, read.digest)
    assert both.file("denoiser", "fp32").path == GRAPH
    assert both.file("denoiser", "fp32", "onnxruntime").path == GRAPH
    assert both.file("denoiser", "fp32", "openvino") == own
    assert both.file("denoiser", "fp32", "torch").path == WEIGHTS


def test_missing_role_names_what_there_is(bundle: Path) -> None:
    read = read_bundle(bundle)
    message = "has no sampler int8 for onnx; it has denoiser fp32 for onnx, denoiser fp32 for torch"
    with pytest.raises(BundleError, match=message):
        read.file("sampler", "int8")


def test_torch_never_gets_an_onnx_file(bundle: Path) -> None:
    read = read_bundle(bundle)
    only = Bundle(read.root, dataclasses.replace(read.manifest, files=read.manifest.files[:1]), read.digest)
    with pytest.raises(BundleError, match="has no denoiser fp32 for torch"):
        only.file("denoiser", "fp32", "torch")


def test_without_verification_each_file_is_checked_when_it_is_opened(bundle: Path) -> None:
    flip_bit(bundle / WEIGHTS)
    read = read_bundle(bundle, verify=False)
    files = {file.path: file for file in read.manifest.all_files}
    assert read.open_bytes(files[GRAPH])
    with pytest.raises(BundleError, match=f"{WEIGHTS}: got sha256"):
        read.open_bytes(files[WEIGHTS])
