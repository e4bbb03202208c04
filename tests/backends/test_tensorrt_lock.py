"""Builders take turns: many at once make one build, and one that is killed blocks nobody."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_tensorrt_cache import ENGINE, KEY

from ddpm_deploy.backends.tensorrt import Adapter, EngineCache, ensure_engine, load_engine
from ddpm_deploy.backends.tensorrt.lock import build_lock
from ddpm_deploy.errors import BackendError

SPAWN = multiprocessing.get_context("spawn")
BUILDERS = 8
PATIENCE_S = 30


def counted_build(log: Path, seconds: float = 0.3) -> Any:
    """A build that leaves a line in `log`."""
    with open(log, "a") as stream:
        stream.write(f"{os.getpid()}\n")
    time.sleep(seconds)
    return ENGINE


def ask(root: Path, log: Path, seconds: float, results: Any) -> None:
    """What each of many processes does."""
    told: list[str] = []
    record, built = ensure_engine(EngineCache(root), KEY, lambda: counted_build(log, seconds), tell=told.append)
    results.put((os.getpid(), built, record.sha256, told))


def start(target: Callable[..., None], *args: Any) -> Any:
    process = SPAWN.Process(target=target, args=args)
    process.start()
    return process


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def test_eight_builders_at_once_make_one_build(tmp_path: Path) -> None:
    results, log = SPAWN.Queue(), tmp_path / "builds"
    processes = [start(ask, tmp_path / "cache", log, 1.0, results) for _ in range(BUILDERS)]
    answers = [results.get(timeout=PATIENCE_S) for _ in processes]
    for process in processes:
        process.join(PATIENCE_S)
    assert log.read_text().split() == [str(pid) for pid, built, _, _ in answers if built]
    assert sum(built for _, built, _, _ in answers) == 1
    assert len({sha256 for _, _, sha256, _ in answers}) == 1
    assert load_engine(EngineCache(tmp_path / "cache"), KEY) == ENGINE.engine


def test_builder_killed_in_mid_build_is_followed_by_the_next(tmp_path: Path) -> None:
    results, log, root = SPAWN.Queue(), tmp_path / "builds", tmp_path / "cache"
    first = start(ask, root, log, 600, results)
    wait_for(log.exists)
    second = start(ask, root, log, 0, results)
    time.sleep(0.5)
    os.kill(first.pid, signal.SIGKILL)
    pid, built, _, told = results.get(timeout=PATIENCE_S)
    first.join(PATIENCE_S)
    second.join(PATIENCE_S)
    assert (pid, built) == (second.pid, True)
    assert log.read_text().split() == [str(first.pid), str(second.pid)]
    assert f"pid {first.pid} died while it built {KEY.title}; taking over" in told
    assert load_engine(EngineCache(root), KEY) == ENGINE.engine


def test_waiting_names_the_owner_and_what_it_builds(tmp_path: Path) -> None:
    results, log = SPAWN.Queue(), tmp_path / "builds"
    owner = start(ask, tmp_path / "cache", log, 600, results)
    try:
        wait_for(log.exists)
        told: list[str] = []
        with (
            pytest.raises(
                BackendError, match=rf"waited 0\.3 s to build mine: pid {owner.pid} still builds {KEY.title}"
            ),
            build_lock(EngineCache(tmp_path / "cache").lock_path, "mine", timeout_s=0.3, tell=told.append),
        ):
            pass
        assert told == [f"waiting for pid {owner.pid}, which builds {KEY.title}"]
    finally:
        owner.kill()
        owner.join(PATIENCE_S)


def test_lock_also_holds_between_threads(tmp_path: Path) -> None:
    log = tmp_path / "builds"
    cache = EngineCache(tmp_path / "cache")
    answers: list[bool] = []
    threads = [
        threading.Thread(target=lambda: answers.append(ensure_engine(cache, KEY, lambda: counted_build(log))[1]))
        for _ in range(BUILDERS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(answers) == [False] * (BUILDERS - 1) + [True]
    assert len(log.read_text().split()) == 1


def hold_and_fork(path: Path, children: Any) -> None:
    with build_lock(path, "mine"):
        child = os.fork()
        if child:
            children.put(child)
        time.sleep(600)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_child_of_a_dead_owner_does_not_keep_the_lock(tmp_path: Path) -> None:
    children = SPAWN.Queue()
    owner = start(hold_and_fork, tmp_path / "lock", children)
    child = children.get(timeout=PATIENCE_S)
    os.kill(owner.pid, signal.SIGKILL)
    owner.join()  # with a timeout it would wait for the child, which has copies of its pipes
    try:
        with build_lock(tmp_path / "lock", "again", timeout_s=5):
            os.kill(child, 0)  # it lives
    finally:
        os.kill(child, signal.SIGKILL)


def test_failed_build_frees_the_lock_and_leaves_no_engine(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)

    def fail() -> Any:
        raise BackendError("no such layer")

    with pytest.raises(BackendError, match="no such layer"):
        ensure_engine(cache, KEY, fail)
    assert cache.load(KEY) is None
    told: list[str] = []
    assert ensure_engine(cache, KEY, lambda: ENGINE, tell=told.append)[1]
    assert told == []  # nobody died


def test_damaged_engine_is_built_again_and_told_of(tmp_path: Path) -> None:
    cache, told = EngineCache(tmp_path), []
    record, _ = ensure_engine(cache, KEY, lambda: ENGINE)
    (tmp_path / record.path).write_bytes(b"garbage")
    again, built = ensure_engine(cache, KEY, lambda: ENGINE, tell=told.append)
    assert (again, built) == (record, True)
    assert "it is damaged" in told[0]
    assert load_engine(cache, KEY) == ENGINE.engine


def test_engine_that_is_there_is_built_again_only_by_force(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    assert ensure_engine(cache, KEY, lambda: ENGINE)[1]
    assert not ensure_engine(cache, KEY, lambda: pytest.fail("it is there"))[1]
    assert ensure_engine(cache, KEY, lambda: ENGINE, force=True)[1]


def test_lock_file_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BackendError, match="cannot be opened"), build_lock(tmp_path / "lock", "mine"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def build_for_real(root: Path, results: Any) -> None:
    from ddpm_deploy.backends.tensorrt import BuildSettings, engine_key, make_builder, open_adapter
    from ddpm_deploy.bundle import default_bundle, read_bundle

    adapter, bundle, cache = open_adapter("tensorrt-rtx"), read_bundle(default_bundle()), EngineCache(root)
    file = bundle.file("denoiser", "fp32")
    key = engine_key(adapter, bundle, file, BuildSettings(), None)
    build = make_builder(adapter, bundle, file, key, cache)
    record, built = ensure_engine(cache, key, build)
    results.put((built, record.sha256))


def test_two_real_builders_at_once_make_one_engine(rtx: Adapter, tmp_path: Path) -> None:
    results = SPAWN.Queue()
    processes = [start(build_for_real, tmp_path / "cache", results) for _ in range(2)]
    answers = [results.get(timeout=PATIENCE_S) for _ in processes]
    for process in processes:
        process.join(PATIENCE_S)
    assert sorted(built for built, _ in answers) == [False, True]
    assert len({sha256 for _, sha256 in answers}) == 1
