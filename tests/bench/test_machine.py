"""What a report says of its machine: enough to understand a timing, nothing that names a host, a user or a path."""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ddpm_deploy.bench import machine
from ddpm_deploy.bench.machine import (
    cache_bytes,
    cpu_quota,
    describe_cpu,
    describe_git,
    describe_gpus,
    describe_machine,
    kernel_version,
    package_version,
    parse_gpus,
    physical_cpus,
    run_quietly,
)


def texts(value: Any) -> Iterator[str]:
    """Every string in a nest of lists and mappings, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from (key, *texts(inner))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts(inner)


def test_description_is_json_and_has_what_a_timing_depends_on() -> None:
    described = json.loads(json.dumps(describe_machine(3)))
    assert described["threads"] == 3
    assert described["python"] == platform.python_version()
    assert described["versions"]["numpy"] == sys.modules["numpy"].__version__
    assert described["memory_bytes"] > 2**28
    assert 1 <= described["cpu"]["usable"] <= described["cpu"]["logical"]
    assert described["cpu"]["model"]
    assert len(described["load_average"]) == 3


def test_no_host_user_or_path_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_PLACES", "cores")
    for name in ("USER", "LOGNAME", "HOSTNAME", "HOME", "SECRET_TOKEN"):
        monkeypatch.setenv(name, f"private-{name}")
    monkeypatch.setattr(platform, "node", lambda: "private-node")
    monkeypatch.setattr(socket, "gethostname", lambda: "private-host")
    said = list(texts(describe_machine(1)))
    private = {os.uname().nodename, platform.version(), str(Path.home()), os.getcwd(), sys.prefix}
    assert not [text for text in said for secret in private if len(secret) > 3 and secret in text]
    assert getpass.getuser() not in said
    assert not [text for text in said if "private-" in text or text.startswith(("/", "~")) or "\\" in text]
    assert "cores" in said


def test_environment_holds_known_variables_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("OMP_PRIVATE", "x")
    environment = describe_machine(1)["environment"]
    assert environment["OMP_NUM_THREADS"] == "7"
    assert "OMP_PRIVATE" not in environment


@pytest.mark.parametrize(
    ("release", "version"),
    [("6.8.0-45-generic", "6.8.0"), ("5.14", "5.14"), ("23.6.0", "23.6.0"), ("6.1.2-built-by-me", "6.1.2"), ("", None)],
)
def test_kernel_is_its_number_alone(release: str, version: str | None) -> None:
    assert kernel_version(release) == version


def test_cpu_of_another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines = "processor : 0\nmodel name\t: Some CPU @ 2.0GHz\ncpu MHz\t\t: 2100.5\nflags\t\t: fpu avx2 avx512_vnni lm\n"
    (tmp_path / "cpuinfo").write_text(lines)
    (tmp_path / "cpu0" / "cpufreq").mkdir(parents=True)
    (tmp_path / "cpu0" / "cpufreq" / "cpuinfo_max_freq").write_text("3500000\n")
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine, "CPUS", tmp_path)
    cpu = describe_cpu()
    assert (cpu["model"], cpu["clock_mhz"], cpu["max_clock_mhz"]) == ("Some CPU @ 2.0GHz", 2100.5, 3500.0)
    assert cpu["flags"] == ["avx2", "avx512_vnni"]
    assert cpu["governor"] is None
    assert cpu["physical"] is None


def test_what_is_unknown_is_none_not_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CPUINFO", "CPUS", "CPU_QUOTA"):
        monkeypatch.setattr(machine, name, tmp_path / "missing")
    monkeypatch.setenv("PATH", str(tmp_path))
    described = describe_machine(1)
    assert described["git"] is None
    assert described["gpus"] == []
    assert described["cpu"]["flags"] is None
    assert described["cpu"]["cache_bytes"] is None


def write_cpu(folder: Path, cpu: int, siblings: str, caches: dict[int, tuple[str, str]]) -> None:
    """caches: by level, the CPUs that share it and its size."""
    (folder / f"cpu{cpu}" / "topology").mkdir(parents=True)
    (folder / f"cpu{cpu}" / "topology" / "thread_siblings_list").write_text(siblings)
    for level, (shared, size) in caches.items():
        index = folder / f"cpu{cpu}" / "cache" / f"index{level}"
        index.mkdir(parents=True)
        for name, text in (("level", str(level)), ("shared_cpu_list", shared), ("size", size)):
            (index / name).write_text(text + "\n")


def test_cores_and_caches_that_threads_share_count_once(tmp_path: Path) -> None:
    for cpu, core in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        write_cpu(tmp_path, cpu, core, {2: (core, "512K"), 3: ("0-3", "32M")})
    write_cpu(tmp_path, 4, "4", {2: ("4", "512K"), 3: ("4", "16M")})
    assert physical_cpus(tmp_path) == 3
    assert cache_bytes(tmp_path) == 48 * 2**20
    assert cache_bytes(tmp_path / "cpu0") is None


@pytest.mark.parametrize(
    ("text", "cpus"), [("150000 100000", 1.5), ("max 100000", None), (None, None), ("nonsense", None)]
)
def test_quota_of_a_container(text: str | None, cpus: float | None) -> None:
    assert cpu_quota(text) == cpus


def test_gpus_as_nvidia_smi_tells_of_them() -> None:
    text = (
        "GPU-1, NVIDIA H100, 570.10, 81559, 700.00, 1980, 1980, 2619, Enabled\n"
        "GPU-2, Tesla T4, 570.10, 15360, [N/A], 300, 1590, 405, [N/A]\nFailed to initialise\n"
    )
    first, second = parse_gpus(text)
    assert (first["name"], first["memory_mib"], first["power_cap_w"]) == ("NVIDIA H100", 81559.0, 700.0)
    assert (first["ecc"], first["driver"], first["max_sm_clock_mhz"]) == ("Enabled", "570.10", 1980.0)
    assert second["power_cap_w"] is None
    assert second["ecc"] is None


def test_gpus_are_asked_for_with_the_fields_that_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(machine, "run_quietly", lambda command: asked.append(command))
    assert describe_gpus() == []
    assert len(re.search(r"--query-gpu=(\S+)", asked[0][1])[1].split(",")) == len(machine.GPU_FIELDS)


@pytest.mark.parametrize(
    ("shown", "names"),
    [(("GPU-3", "GPU-1"), ["c", "a"]), (("GPU-2",), ["b"]), ((), ["a", "b", "c"]), (("GPU-4",), ["a", "b", "c"])],
)
def test_gpus_are_those_that_cuda_shows_in_its_order(
    shown: tuple[str, ...], names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"GPU-{i}, {name}, 580.1, 81559, 700, 1980, 1980, 2619, Enabled" for i, name in enumerate("abc", 1)]
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\n" + "".join(f'echo "{line}"\n' for line in lines))
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(machine, "visible_uuids", lambda: shown)
    gpus = describe_gpus()
    assert [gpu["name"] for gpu in gpus] == names
    assert "GPU-" not in json.dumps(gpus)  # which card it is, is nobody's business


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True)


def test_commit_is_that_of_the_package_and_changes_are_seen(tmp_path: Path) -> None:
    git(tmp_path, "init")
    (tmp_path / "__init__.py").write_text("")
    assert describe_git(tmp_path) is None  # a checkout that does not track it
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    clean = describe_git(tmp_path)
    assert clean is not None
    assert re.fullmatch(r"[0-9a-f]{40}", clean["commit"])
    assert clean["dirty"] is False
    (tmp_path / "__init__.py").write_text("x = 1\n")
    assert describe_git(tmp_path) == {"commit": clean["commit"], "dirty": True}


def test_commands_that_are_missing_or_fail_say_nothing() -> None:
    assert run_quietly(["no-such-program-here"]) is None
    assert run_quietly([sys.executable, "-c", "print(1); raise SystemExit(3)"]) is None
    assert run_quietly([sys.executable, "-c", "print(1)"]) == "1\n"
    assert package_version("no-such-package-here") is None
