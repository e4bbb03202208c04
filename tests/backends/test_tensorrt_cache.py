"""Engines on disk: found by their key, handed over only when they are what their sidecar says."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm_deploy.backends.tensorrt import BuildSettings, BuiltEngine, EngineCache, EngineKey, load_engine
from ddpm_deploy.backends.tensorrt.cache import VARIABLE, default_root
from ddpm_deploy.backends.tensorrt.record import EngineRecord, read_record
from ddpm_deploy.bundle import sha256_of
from ddpm_deploy.errors import BackendError

KEY = EngineKey(
    role="denoiser",
    precision="fp16",
    onnx_sha256="1" * 64,
    bundle_digest="sha256:" + "2" * 64,
    runtime="tensorrt",
    runtime_version="10.4.0",
    device="NVIDIA H100, compute capability 9.0",
    driver="580.65.06",
    settings=BuildSettings(batches=(1, 8)),
)
SHAPES = ((1, 3, 8, 8), (1, 3, 8, 8), (1, 3, 8, 8))
ENGINE = BuiltEngine(b"engine" * 100, ({"x": SHAPES},), {"convolution": {"fp16": 31, "fp32": 2}}, False, 1.5)


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


def sidecar(cache: EngineCache) -> Path:
    return cache.root / f"{KEY.stem}.json"


def edit(cache: EngineCache, change: Any) -> None:
    text = json.loads(sidecar(cache).read_text())
    change(text)
    sidecar(cache).write_text(json.dumps(text))


# -- what is stored comes back ----------------------------------------------------------------------------------------


def test_stored_engine_comes_back_with_its_sidecar(cache: EngineCache) -> None:
    record = cache.store(KEY, ENGINE)
    found = cache.load(KEY)
    assert found == (record, ENGINE.engine)
    assert record.key == KEY
    assert record.layers == ENGINE.layers
    assert record.profiles == ENGINE.profiles
    assert record.sha256 == sha256_of(ENGINE.engine).removeprefix("sha256:")
    assert load_engine(cache, KEY) == ENGINE.engine
    assert cache.records() == [record]


def test_rebuilt_engine_replaces_the_old_one_and_leaves_nothing(cache: EngineCache) -> None:
    cache.store(KEY, ENGINE)
    (cache.root / f".{KEY.stem}.json.77.ab.new").write_text("what a dead writer left")
    other = cache.store(replace(KEY, role="step"), ENGINE)
    record = cache.store(KEY, replace(ENGINE, engine=b"another"))
    assert load_engine(cache, KEY) == b"another"
    assert sorted(path.name for path in cache.root.iterdir()) == sorted(
        [record.path, other.path, f"{KEY.stem}.json", f"{other.key.stem}.json"]
    )


def test_cache_is_private_to_its_owner(cache: EngineCache) -> None:
    cache.store(KEY, ENGINE)
    assert stat.S_IMODE(cache.root.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in cache.root.iterdir()} == {0o600}


CHANGES = {
    "role": "step",
    "precision": "fp32",
    "onnx_sha256": "a" * 64,
    "bundle_digest": "sha256:" + "b" * 64,
    "runtime": "tensorrt-rtx",
    "runtime_version": "10.9.0",
    "device": "NVIDIA A100, compute capability 8.0",
    "driver": "590.1",
    "settings": BuildSettings(batches=(1, 16)),
    "builder": 99,
}


@pytest.mark.parametrize("name", list(EngineKey.__dataclass_fields__))
def test_every_part_of_the_key_tells_engines_apart(cache: EngineCache, name: str) -> None:
    cache.store(KEY, ENGINE)
    assert cache.load(replace(KEY, **{name: CHANGES[name]})) is None


SETTINGS = {
    "batches": (2,),
    "rows": (1, 2, 3),
    "state_size": (1, 2, 3),
    "axes": (("H", (8, 8, 16)),),
    "optimization_level": 2,
    "workspace_bytes": 2**30,
    "hardware_compatibility": "ampere_plus",
    "version_compatible": True,
    "strip_weights": True,
    "refit": True,
    "timing_cache": False,
    "compute_capabilities": ("8.9",),
}


@pytest.mark.parametrize("name", list(BuildSettings.__dataclass_fields__))
def test_every_setting_tells_engines_apart_and_survives_the_sidecar(cache: EngineCache, name: str) -> None:
    cache.store(KEY, ENGINE)
    key = replace(KEY, settings=replace(BuildSettings(), **{name: SETTINGS[name]}))
    assert cache.load(key) is None
    cache.store(key, ENGINE)
    found = cache.find(key)
    assert found is not None
    assert found.key == key


# -- misses in words --------------------------------------------------------------------------------------------------


def test_miss_names_what_differs_from_the_nearest_engine(cache: EngineCache) -> None:
    cache.store(KEY, ENGINE)
    cache.store(replace(KEY, role="step", runtime_version="10.9.0"), ENGINE)
    asked = replace(KEY, runtime_version="10.9.0", settings=BuildSettings(batches=(1, 16)))
    assert cache.explain(asked) == (
        "no engine for denoiser fp16 on tensorrt 10.9.0: the nearest one differs in: "
        "tensorrt version 10.4.0 -> 10.9.0, batch 1,8 -> 1,16"
    )


def test_miss_in_an_empty_cache_says_so(cache: EngineCache) -> None:
    assert cache.explain(KEY) == f"no engine for denoiser fp16 on tensorrt 10.4.0: {cache.root} holds none"
    with pytest.raises(BackendError, match=r"holds none; run python -m ddpm_deploy\.build"):
        load_engine(cache, KEY)


def test_settings_are_explained_in_words(cache: EngineCache) -> None:
    cache.store(KEY, ENGINE)
    settings = replace(KEY.settings, workspace_bytes=2**30, version_compatible=True, hardware_compatibility="none")
    assert cache.explain(replace(KEY, settings=settings)).endswith(
        "differs in: workspace default -> 1024 MiB, hardware compatibility default -> none, "
        "version compatible no -> yes"
    )


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:-1] + b"X", lambda data: b"", lambda data: data + b"!"]
)
def test_truncated_or_edited_engine_is_refused(cache: EngineCache, damage: Any) -> None:
    record = cache.store(KEY, ENGINE)
    (cache.root / record.path).write_bytes(damage(ENGINE.engine))
    with pytest.raises(BackendError, match="got other contents than its sidecar says; it is damaged, build it again"):
        load_engine(cache, KEY)


@pytest.mark.parametrize("length", [0, 1, 100, -2])
def test_truncated_sidecar_is_refused(cache: EngineCache, length: int) -> None:
    cache.store(KEY, ENGINE)
    sidecar(cache).write_bytes(sidecar(cache).read_bytes()[:length])
    with pytest.raises(BackendError, match="the cache entry is damaged, build the engine again"):
        load_engine(cache, KEY)
    assert cache.records() == []


EDITS = {
    "unknown key": (lambda text: text.update(extra=1), "unknown key 'extra'"),
    "missing key": (lambda text: text.pop("layers"), "'layers' is missing"),
    "path out of the cache": (lambda text: text["engine"].update(path="../evil.engine"), r"engine\.path: got '../evil"),
    "absolute path": (lambda text: text["engine"].update(path="/tmp/evil.engine"), r"engine\.path: got '/tmp/evil"),
    "another engine's hash": (lambda text: text["engine"].update(sha256="0" * 64), r"engine\.path"),
    "no hash": (lambda text: text["engine"].update(sha256="x"), r"engine\.sha256: got 'x'"),
    "later format": (lambda text: text.update(format=2), "format: got 2"),
    "another version": (lambda text: text["key"].update(runtime_version="11"), r"engine\.path"),
    "odd role": (lambda text: text["key"].update(role="virus"), r"key\.role: got 'virus'"),
    "shapes of two ranks": (lambda text: text["profiles"][0].update(x=[[1], [1, 2], [1]]), "three shapes of one rank"),
    "no batches": (lambda text: text["settings"].update(batches=[]), "batches: got"),
    "number for truth": (lambda text: text.update(inspected=1), "inspected: got 1, expected true or false"),
    "negative count": (lambda text: text["layers"]["convolution"].update(fp16=-1), r"layers\.convolution\.fp16"),
}


@pytest.mark.parametrize("name", EDITS)
def test_edited_sidecar_is_refused_naming_the_field(cache: EngineCache, name: str) -> None:
    change, message = EDITS[name]
    cache.store(KEY, ENGINE)
    edit(cache, change)
    with pytest.raises(BackendError, match=message):
        load_engine(cache, KEY)


def test_sidecar_of_another_engine_is_refused(cache: EngineCache) -> None:
    cache.store(KEY, ENGINE)
    other = cache.store(replace(KEY, role="step"), ENGINE)
    (cache.root / f"{other.key.stem}.json").replace(sidecar(cache))
    with pytest.raises(BackendError, match="describes another engine"):
        load_engine(cache, KEY)


@given(
    st.binary(max_size=300)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_bytes_for_a_sidecar_end_in_a_clear_error(data: bytes) -> None:
    with pytest.raises(BackendError, match="build the engine again"):
        read_record(data, "some.json")


def refusal(data: bytes) -> str | None:
    """Why a sidecar is refused, or None."""
    try:
        read_record(data, "some.json")
    except BackendError as error:
        return str(error)
    return None


@given(st.data())
def test_sidecar_with_one_odd_value_is_read_or_refused(data: st.DataObject) -> None:
    record = EngineRecord(KEY, "", 1, "0" * 64, ENGINE.profiles, ENGINE.layers, False, 1.0)
    path = f"{KEY.stem}.{'0' * 16}.engine"
    text = json.loads(replace(record, path=path).to_json())
    part = data.draw(st.sampled_from([text, text["key"], text["settings"], text["engine"]]))
    name = data.draw(st.sampled_from(sorted(part)))
    part[name] = data.draw(
        st.none() | st.booleans() | st.integers(-2, 2**70) | st.text(max_size=5) | st.lists(st.integers())
    )
    reason = refusal(json.dumps(text).encode())
    assert reason is None or "build the engine again" in reason


def test_engine_that_is_a_link_is_refused(cache: EngineCache, tmp_path: Path) -> None:
    record = cache.store(KEY, ENGINE)
    elsewhere = tmp_path / "elsewhere"
    (cache.root / record.path).rename(elsewhere)
    (cache.root / record.path).symlink_to(elsewhere)
    with pytest.raises(BackendError, match="is a link"):
        load_engine(cache, KEY)


def test_sidecar_that_is_a_link_is_refused(cache: EngineCache, tmp_path: Path) -> None:
    cache.store(KEY, ENGINE)
    sidecar(cache).rename(tmp_path / "elsewhere")
    sidecar(cache).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BackendError, match="is a link"):
        load_engine(cache, KEY)


def test_fifo_in_place_of_an_engine_does_not_block(cache: EngineCache) -> None:
    record = cache.store(KEY, ENGINE)
    (cache.root / record.path).unlink()
    os.mkfifo(cache.root / record.path)
    with pytest.raises(BackendError, match="is no regular file"):
        load_engine(cache, KEY)


def test_missing_engine_of_a_sidecar_is_named(cache: EngineCache) -> None:
    record = cache.store(KEY, ENGINE)
    (cache.root / record.path).unlink()
    with pytest.raises(BackendError, match="its engine is missing; build it again"):
        load_engine(cache, KEY)


def test_folder_that_everybody_may_write_to_is_refused(cache: EngineCache) -> None:
    cache.store(KEY, ENGINE)
    cache.root.chmod(0o777)
    with pytest.raises(BackendError, match="everybody may write to it, and so put code there; run chmod o-w"):
        load_engine(cache, KEY)
    with pytest.raises(BackendError, match="everybody may write to it"):
        cache.store(KEY, ENGINE)


def test_folder_of_another_user_is_refused(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.store(KEY, ENGINE)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner == 0:  # root may own what others read
        os.chown(cache.root, 12345, -1)
        owner = 12345
    with pytest.raises(BackendError, match=f"belongs to user {owner}, who could put code there"):
        load_engine(cache, KEY)


# -- engines from elsewhere -------------------------------------------------------------------------------------------


def test_engine_from_elsewhere_needs_trust_or_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "my.engine"
    path.write_bytes(b"engine")
    with pytest.raises(BackendError, match="an engine is code, and this one is not from the cache"):
        load_engine(path)
    assert load_engine(path, trust_engine=True) == b"engine"
    assert load_engine(path, digest=sha256_of(b"engine")) == b"engine"
    with pytest.raises(BackendError, match="this is not the pinned engine"):
        load_engine(path, digest=sha256_of(b"other"), trust_engine=True)
    with pytest.raises(ValueError, match="digest: got 'abc'"):
        load_engine(path, digest="abc")
    with pytest.raises(BackendError, match="is missing"):
        load_engine(tmp_path / "none.engine", trust_engine=True)


def test_engine_of_the_cache_can_be_pinned_too(cache: EngineCache) -> None:
    cache.store(KEY, ENGINE)
    assert load_engine(cache, KEY, digest=sha256_of(ENGINE.engine)) == ENGINE.engine
    with pytest.raises(BackendError, match="not the pinned engine"):
        load_engine(cache, KEY, digest=sha256_of(b"other"))
    with pytest.raises(ValueError, match="key: got None"):
        load_engine(cache)


# -- where it lies ----------------------------------------------------------------------------------------------------


def test_folder_comes_from_the_argument_the_variable_or_the_platform(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "variable"))
    assert EngineCache(tmp_path / "argument").root == tmp_path / "argument"
    assert EngineCache().root == tmp_path / "variable"
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_root() == tmp_path / "xdg" / "ddpm-deploy" / "engines"


WRITE = """
import os, sys
sys.path[:0] = sys.argv[2:]
from test_tensorrt_cache import ENGINE, KEY
from ddpm_deploy.backends.tensorrt import EngineCache
os.setuid(65534)
try:
    EngineCache(sys.argv[1]).store(KEY, ENGINE)
except Exception as error:
    print(type(error).__name__, error)
"""


def test_folder_that_cannot_be_made_gives_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(
        BackendError, match=r"cannot be made: .*; give another folder with DDPM_DEPLOY_CACHE, or --cache of build"
    ):
        EngineCache(tmp_path / "file" / "engines").store(KEY, ENGINE)


def test_read_only_folder_gives_one_clear_error(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.open()
    real = os.open

    def refuse(path: Any, flags: int, *args: Any) -> int:
        if flags & os.O_CREAT:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, flags, *args)

    monkeypatch.setattr(os, "open", refuse)  # root may write everywhere
    with pytest.raises(BackendError, match=r"engine: cannot be written: Permission denied; give another folder"):
        cache.store(KEY, ENGINE)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
def test_folder_that_the_user_may_not_write_to_gives_one_clear_error() -> None:
    folder = Path("/tmp") / f"ddpm-deploy-test-{os.getpid()}"  # not tmp_path, which is root's alone
    folder.mkdir(mode=0o755)
    try:
        command = [sys.executable, "-c", WRITE, str(folder), *filter(None, sys.path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    finally:
        folder.rmdir()
    assert done.stdout.startswith("BackendError"), done.stderr
    assert "cannot be written: Permission denied; give another folder with DDPM_DEPLOY_CACHE" in done.stdout
