"""Disks that are full or cannot be written, at the level of the commands."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import hostile as h
import pytest

from ddpm_deploy.backends.tensorrt.cache import EngineCache
from ddpm_deploy.backends.tensorrt.record import EngineKey
from ddpm_deploy.backends.tensorrt.settings import BuildSettings
from ddpm_deploy.bundle import read_bundle
from ddpm_deploy.errors import BackendError
from ddpm_deploy.export.__main__ import main as export
from ddpm_deploy.parity.__main__ import main as parity
from ddpm_deploy.sample import main as sample

Refused = Callable[..., str]
KEY = EngineKey(
    role="denoiser", precision="fp32", onnx_sha256="0" * 64, bundle_digest=f"sha256:{'1' * 64}", runtime="tensorrt-rtx",
    runtime_version="1.4", device="any", driver=None, settings=BuildSettings(),
)  # fmt: skip


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs the right to mount a small tmpfs ({error})")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Of an export that works."""
    (tmp_path / "m.onnx").write_bytes(h.tiny_onnx().SerializeToString())
    return [str(tmp_path / "m.onnx"), *h.SAID, "--target", "onnxruntime-cpu,tensorrt"]


def fill(disk: Path, free_bytes: int) -> None:
    room = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(room.f_bavail * room.f_bsize - free_bytes))


def built(size_bytes: int) -> SimpleNamespace:
    return SimpleNamespace(engine=b"e" * size_bytes, profiles=(), layers={}, inspected=False, seconds=1.0)


@pytest.mark.parametrize("there", [True, False])
def test_export_to_a_full_disk_leaves_what_was_there(
    refused: Refused, arguments: list[str], disk: Path, there: bool
) -> None:
    if there:
        assert export([*arguments, "--out", str(disk / "b"), "--name", "old"]) == 0
    fill(disk, 16 * 2**10)
    assert "No space left on device; free some space; what was there is untouched" in refused(
        export, *arguments, out="disk/b"
    )
    assert (read_bundle(disk / "b").manifest.model.name if there else sorted(os.listdir(disk))) == (
        "old" if there else ["filler"]
    )


@pytest.mark.parametrize(("out", "failed"), [("x.npy", "x.npy"), ("x.png", "x.png"), ("x", r"x/\d+.png")])
def test_samples_for_a_full_disk_are_one_clear_line(
    disk: Path, out: str, failed: str, capfd: pytest.CaptureFixture[str]
) -> None:
    fill(disk, 8 * 2**10)
    assert sample(["--num", "256", "--steps", "1", "--threads", "1", "--out", str(disk / out)]) == 2
    line = capfd.readouterr().err
    assert re.fullmatch(f"ddpm-deploy sample: error: {disk}/{failed}: No space left on device\n", line)
    assert {path.name for path in disk.iterdir()} <= {"filler", "x"}


@pytest.mark.parametrize("name", ["x.npy", "x.png"])
def test_samples_that_do_not_fit_leave_the_old_ones(disk: Path, name: str) -> None:
    arguments = ["--steps", "1", "--threads", "1", "--out", str(disk / name)]
    assert sample(["--num", "1", *arguments]) == 0
    before = (disk / name).read_bytes()
    fill(disk, 8 * 2**10)
    assert sample(["--num", "256", *arguments]) == 2
    assert (disk / name).read_bytes() == before


def test_engine_for_a_full_disk_leaves_the_old_engine(disk: Path) -> None:
    cache = EngineCache(disk / "cache")
    cache.store(KEY, built(1000))
    names = sorted(os.listdir(cache.root))
    with pytest.raises(BackendError, match=r"No space left on device; give another folder with DDPM_DEPLOY_CACHE"):
        cache.store(KEY, built(2**19))
    assert sorted(os.listdir(cache.root)) == names
    found = cache.load(KEY)
    assert found is not None
    assert found[1] == b"e" * 1000


def test_sidecar_that_does_not_fit_leaves_the_old_engine(disk: Path) -> None:
    cache = EngineCache(disk / "cache")
    cache.store(KEY, built(1000))
    fill(disk, 4096)  # room for the engine's file, none for its sidecar
    with pytest.raises(BackendError, match="No space left on device"):
        cache.store(KEY, built(4096))
    found = cache.load(KEY)
    assert found is not None
    assert found[1] == b"e" * 1000
    (disk / "filler").unlink()
    cache.store(KEY, built(2000))
    assert len(list(cache.root.iterdir())) == 2


def test_read_only_place_is_refused_before_any_work(
    refused: Refused, arguments: list[str], disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert export([*arguments, "--out", str(disk / "b"), "--name", "old"]) == 0
    EngineCache(disk / "cache").store(KEY, built(1000))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    monkeypatch.setattr("ddpm_deploy.export.api.export", lambda *a, **o: pytest.fail("worked before it looked"))
    monkeypatch.setattr("ddpm_deploy.sampler.Sampler.sample", lambda *a, **o: pytest.fail("worked before it looked"))
    for target in ("disk/b", "disk/deep/new"):
        line = refused(export, *arguments, out=target)
        assert "Read-only file system; give a place that can be written; what was there is untouched" in line
    for main in (sample, parity):
        assert "Read-only file system" in refused(main, "--threads", "1", out="disk/x.png")
    with pytest.raises(BackendError, match="Read-only file system; give another folder"):
        EngineCache(disk / "cache").store(KEY, built(10))
    assert read_bundle(disk / "b").manifest.model.name == "old"


def test_shards_for_a_full_disk_are_one_clear_line_and_go_on_when_there_is_room(
    disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fill(disk, 80 * 2**10)
    command = ["--num", "48", "--steps", "1", "--threads", "1", "--shards", str(disk / "set"), "--shard-size", "12"]
    assert sample(command) == 2
    line = capfd.readouterr().err
    assert line.count("\n") == 1
    assert "No space left on device" in line
    left = os.listdir(disk / "set")
    assert 0 < sum(name.endswith(".tar") for name in left) < 4
    assert not [name for name in left if name.startswith(".")]
    (disk / "filler").unlink()
    assert sample(command) == 0
    assert sample(["--shards", str(disk / "set"), "--verify"]) == 0
