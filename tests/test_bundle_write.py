from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundle_samples import GRAPH, sample_files, sample_manifest

from ddpm_deploy.bundle import check_target, read_bundle, to_json, write_bundle
from ddpm_deploy.bundle import write as writing
from ddpm_deploy.errors import BundleError

HERE = Path(__file__).parent


def put(out: Path, name: str = "toy", salt: bytes = b"") -> Path:
    write_bundle(out, sample_manifest(name), sample_files(salt))
    return out


def name_of(out: Path) -> str:
    return read_bundle(out).manifest.model.name


def kill_writers(*args: str) -> list[tuple[str, str]]:
    """(point of the kill, what a reader found) of each."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    command = [sys.executable, str(HERE / "bundle_killer.py"), *args]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=True)
    return [(line.split(": ", 1)[0], line.split(": ", 1)[1]) for line in done.stdout.splitlines()]


def test_written_bundle_is_what_was_given(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "deep" / "b", sample_manifest(), sample_files())
    assert read_bundle(bundle.root) == bundle
    assert {f.path: bundle.open_bytes(f) for f in bundle.manifest.all_files} == sample_files()
    assert [f.size_bytes for f in bundle.manifest.files] == [5, 7000]


def test_sizes_and_hashes_come_from_the_bytes_whatever_the_caller_says(tmp_path: Path) -> None:
    read = read_bundle(put(tmp_path / "b"))
    write_bundle(tmp_path / "b", read.manifest, sample_files(b"changed"))
    assert read_bundle(tmp_path / "b").manifest.files[0].size_bytes == len(b"graphchanged")


def test_same_content_gives_the_same_digest(tmp_path: Path) -> None:
    assert read_bundle(put(tmp_path / "a")).digest == read_bundle(put(tmp_path / "b")).digest


def test_files_must_be_those_of_the_manifest(tmp_path: Path) -> None:
    for files in ({}, sample_files() | {"extra.onnx": b"1"}, {GRAPH: b"1"}):
        with pytest.raises(BundleError, match="but the manifest lists"):
            write_bundle(tmp_path / "b", sample_manifest(), files)
    assert not list(tmp_path.iterdir())


def test_replacing_leaves_nothing_beside_the_bundle(tmp_path: Path) -> None:
    put(tmp_path / "b", "one")
    put(tmp_path / "b", "two")
    assert name_of(tmp_path / "b") == "two"
    assert os.listdir(tmp_path) == ["b"]


def test_empty_folder_and_damaged_bundle_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    put(tmp_path / "empty")
    (put(tmp_path / "b") / "bundle.json").write_bytes(b"\xff")
    assert name_of(put(tmp_path / "b", "mended")) == "mended"


def test_link_to_a_bundle_stays_a_link(tmp_path: Path) -> None:
    put(tmp_path / "v1")
    (tmp_path / "latest").symlink_to("v1")
    put(tmp_path / "latest", "two")
    assert (tmp_path / "latest").is_symlink()
    assert name_of(tmp_path / "v1") == "two"


@pytest.mark.parametrize("name", ["notes.txt", "bundle.json.bak", "checkpoints", "mine.onnx", "a.npz"])
def test_folder_with_foreign_files_is_not_replaced(tmp_path: Path, name: str) -> None:
    out = put(tmp_path / "b")
    (out / name).mkdir() if name == "checkpoints" else (out / name).touch()
    for attempt in (lambda: put(out, "two"), lambda: check_target(out)):
        with pytest.raises(BundleError, match=f"holds '{name}', which is no part of a bundle"):
            attempt()
    assert name_of(out) == "toy"


def test_folder_or_file_that_is_no_bundle_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "weights.onnx").touch()
    with pytest.raises(BundleError, match="is no bundle"):
        put(tmp_path / "run")
    with pytest.raises(BundleError, match="is a file"):
        put(tmp_path / "run" / "weights.onnx")
    assert os.listdir(tmp_path / "run") == ["weights.onnx"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked writers: there is no fork here")
def test_writer_killed_before_any_of_its_calls_leaves_old_or_new(tmp_path: Path) -> None:
    kills = kill_writers("events", str(tmp_path / "b"))
    assert {found for _, found in kills} == {"old", "new"}, kills
    assert len(kills) > 12
    put(tmp_path / "b")
    assert os.listdir(tmp_path) == ["b"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked writers: there is no fork here")
def test_writer_killed_at_30_random_moments_leaves_old_or_new(tmp_path: Path) -> None:
    kills = kill_writers("moments", str(tmp_path / "b"), "20")
    assert len(kills) == 30
    assert {found for _, found in kills} == {"old", "new"}, kills
    put(tmp_path / "b")
    assert os.listdir(tmp_path) == ["b"]


def test_reader_beside_a_writer_always_finds_a_whole_bundle(tmp_path: Path) -> None:
    out = put(tmp_path / "b", "0")
    names, enough = [0], threading.Event()

    def write_until_enough() -> None:
        for i in itertools.count(1):
            put(out, str(i), bytes([i % 256]))
            if enough.is_set():
                return

    writer = threading.Thread(target=write_until_enough)
    writer.start()
    try:
        while len(set(names)) < 8:
            names.append(int(name_of(out)))
    finally:
        enough.set()
        writer.join()
    assert names == sorted(names)


def test_writers_side_by_side_end_with_one_whole_bundle(tmp_path: Path) -> None:
    writers = [threading.Thread(target=put, args=(tmp_path / "b", str(i))) for i in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert name_of(tmp_path / "b") in map(str, range(8))
    assert os.listdir(tmp_path) == ["b"]


def test_without_exchange_the_bundle_is_replaced_by_two_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_exchange", lambda one, other: False)
    put(tmp_path / "b", "one")
    put(tmp_path / "b", "two")
    assert name_of(tmp_path / "b") == "two"
    assert os.listdir(tmp_path) == ["b"]


def test_old_bundle_left_between_two_renames_is_put_back_by_the_next_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "b", "old").rename(tmp_path / ".b.0123456789abcdef.old")
    monkeypatch.setattr(writing, "write_new", refuse_to_write)
    with pytest.raises(BundleError, match="cannot be written"):
        put(tmp_path / "b", "new")
    assert name_of(tmp_path / "b") == "old"


def test_leftovers_of_other_bundles_are_left_alone(tmp_path: Path) -> None:
    for name in (".b.1.new", ".b2.1.new", ".b.1.old", "other"):
        (tmp_path / name).mkdir()
    put(tmp_path / "b")
    assert sorted(os.listdir(tmp_path)) == [".b2.1.new", "b", "other"]


def refuse_to_write(path: Path, data: bytes) -> None:
    raise OSError(28, "No space left on device", str(path))


LIMITED = """
import resource, sys
from pathlib import Path
from bundle_samples import sample_files, sample_manifest
from ddpm_deploy.bundle import write_bundle
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
write_bundle(Path(sys.argv[1]), sample_manifest("new"), sample_files())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files: there is no setrlimit here")
def test_file_size_limit_leaves_the_old_bundle(tmp_path: Path) -> None:
    out = put(tmp_path / "b", "old")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    command = [sys.executable, "-c", LIMITED, str(out)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert "BundleError" in done.stderr
    assert "cannot be written: File too large" in done.stderr
    assert name_of(out) == "old"
    assert os.listdir(tmp_path) == ["b"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs the right to mount a small tmpfs ({error})")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_leaves_the_old_bundle(small_disk: Path) -> None:
    out = put(small_disk / "b", "old")
    with pytest.raises(BundleError, match="No space left on device; free some space; what was there is untouched"):
        put(out, "new", b"x" * 100_000)
    assert name_of(out) == "old"
    assert os.listdir(small_disk) == ["b"]


def test_read_only_file_system_is_refused_by_name(small_disk: Path) -> None:
    out = put(small_disk / "b", "old")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for target in (out, small_disk / "other"):
        with pytest.raises(BundleError, match="Read-only file system; give a place that can be written"):
            put(target, "new")
    assert name_of(out) == "old"


def test_mount_point_is_refused_with_advice(small_disk: Path) -> None:
    with pytest.raises(BundleError, match="mount point: give a folder inside it"):
        put(small_disk)


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="root may write everywhere")
def test_read_only_folder_is_refused_by_name(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(BundleError, match="give a place that can be written"):
        put(tmp_path / "b")


def test_everybody_may_read_what_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        out = put(tmp_path / "b")
    finally:
        os.umask(before)
    if os.name == "posix":
        assert out.stat().st_mode & 0o777 == 0o755
        assert (out / GRAPH).stat().st_mode & 0o777 == 0o644


def test_json_of_an_unwritten_manifest_is_refused() -> None:
    with pytest.raises(BundleError, match=r"files\[0\].size_bytes: got 0"):
        to_json(sample_manifest())
