"""The machine that a report was measured on: processors, clocks, memory, versions, the commit; what is unknown is None.

Nothing of it names a host, a user or a path.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from ddpm_deploy.backends.base import usable_cpus
from ddpm_deploy.backends.cuda.gpus import visible_uuids
from ddpm_deploy.doctor import cpu_flags

CPUINFO = Path("/proc/cpuinfo")
CPUS = Path("/sys/devices/system/cpu")
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds it may use, and of how many
FLAGS = (
    "hypervisor",
    *("avx", "avx2", "f16c", "fma", "avx_vnni", "avx_vnni_int8"),
    *("avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_int8", "amx_fp16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)
PACKAGES = (
    *("ddpm-deploy", "numpy", "torch", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "diffusers"),
    *("tensorrt", "tensorrt-rtx-cu13", "mlcommons-loadgen", "pytest-benchmark"),
)
VARIABLES = (
    *("OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "OMP_DYNAMIC", "OMP_SCHEDULE", "OMP_WAIT_POLICY"),
    *("GOMP_CPU_AFFINITY", "GOMP_SPINCOUNT", "KMP_AFFINITY", "KMP_BLOCKTIME"),
    *("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "NVIDIA_TF32_OVERRIDE"),
)
GPU_FIELDS = {  # by nvidia-smi's names; clocks in MHz, memory in MiB, power in W
    "uuid": "uuid",
    "name": "name",
    "driver": "driver_version",
    "memory_mib": "memory.total",
    "power_cap_w": "power.limit",
    "sm_clock_mhz": "clocks.sm",
    "max_sm_clock_mhz": "clocks.max.sm",
    "memory_clock_mhz": "clocks.mem",
    "ecc": "ecc.mode.current",
}
GPU_TEXTS = ("uuid", "name", "driver", "ecc")  # the others are numbers
UNKNOWN = ("", "N/A", "[N/A]", "[Not Supported]", "[Unknown Error]")
PACKAGE = Path(__file__).parent.parent
SECONDS = 10  # that a command may take
SCALES = {"K": 2**10, "M": 2**20, "G": 2**30}


def describe_machine(threads: int) -> dict[str, Any]:
    """Everything that a timing depends on, ready for JSON. threads: that the run computes with."""
    return {
        "cpu": describe_cpu(),
        "threads": threads,
        "memory_bytes": memory_bytes(),
        "load_average": load_average(),
        "system": platform.system() or None,
        "kernel": kernel_version(platform.release()),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := package_version(name))},
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "git": describe_git(PACKAGE),
        "gpus": describe_gpus(),
    }


def kernel_version(release: str) -> str | None:
    """The numbers that a release begins with; what follows says who built it."""
    found = re.match(r"\d+(\.\d+)*", release)
    return found[0] if found else None


def describe_cpu() -> dict[str, Any]:
    """Model, instruction sets, counts, clocks. quota: CPUs' worth of time that a container may use."""
    text = _read(CPUINFO) or ""
    flags = cpu_flags(text)
    return {
        "model": _first(text, "model name") or platform.processor() or platform.machine() or None,
        "architecture": platform.machine() or None,
        "flags": [flag for flag in FLAGS if flag in flags] if flags else None,
        "physical": physical_cpus(CPUS),
        "logical": os.cpu_count(),
        "usable": usable_cpus(),
        "quota": cpu_quota(_read(CPU_QUOTA)),
        "clock_mhz": _number(_first(text, "cpu MHz")),
        "min_clock_mhz": _khz(CPUS / "cpu0/cpufreq/cpuinfo_min_freq"),
        "max_clock_mhz": _khz(CPUS / "cpu0/cpufreq/cpuinfo_max_freq"),
        "governor": _read(CPUS / "cpu0/cpufreq/scaling_governor"),
        "cache_bytes": cache_bytes(CPUS),
    }


def physical_cpus(cpus: Path) -> int | None:
    """Cores, counted by the distinct sets of CPUs that share one."""
    shared = {_read(path) for path in cpus.glob("cpu[0-9]*/topology/thread_siblings_list")} - {None}
    return len(shared) or None


def cache_bytes(cpus: Path) -> int | None:
    """The last-level caches of all cores together."""
    found: dict[tuple[str, str], int] = {}  # (level, the CPUs that share it)
    for index in cpus.glob("cpu[0-9]*/cache/index[0-9]*"):
        level, shared, size = (_read(index / name) for name in ("level", "shared_cpu_list", "size"))
        if level and shared and size and size[:-1].isdecimal():
            found[level, shared] = int(size[:-1]) * SCALES.get(size[-1], 0)
    if not found:
        return None
    last = max(level for level, _ in found)
    return sum(size for (level, _), size in found.items() if level == last) or None


def cpu_quota(text: str | None) -> float | None:
    """From a control group's `cpu.max`, "50000 100000" or "max 100000"; None where there is no quota."""
    granted, _, period = (text or "max").partition(" ")
    return int(granted) / int(period) if granted.isdecimal() and period.isdecimal() else None


def memory_bytes() -> int | None:
    """Of the whole machine."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def load_average() -> list[float] | None:
    """Over 1, 5 and 15 minutes."""
    try:
        return [round(load, 2) for load in os.getloadavg()]
    except (AttributeError, OSError):
        return None


def package_version(name: str) -> str | None:
    """The version of an installed distribution, which is not imported."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def describe_git(folder: Path) -> dict[str, Any] | None:
    """Commit, and whether anything differs from it; None where git does not track `folder`."""
    git = ["git", "-C", str(folder)]
    tracked = run_quietly([*git, "ls-files", "--error-unmatch", "__init__.py"])  # a checkout around it is not its own
    commit, status = (run_quietly([*git, *words]) for words in (["rev-parse", "HEAD"], ["status", "--porcelain"]))
    if not tracked or not commit or status is None:
        return None
    return {"commit": commit.strip(), "dirty": bool(status.strip())}


def describe_gpus() -> list[dict[str, Any]]:
    """NVIDIA's GPUs as nvidia-smi tells of them, which hides none and has an order of its own.

    Those that CUDA shows to this process, in its order, so that `cuda:0` is the first; where it shows none, all.
    """
    query = ",".join(GPU_FIELDS.values())
    found = parse_gpus(run_quietly(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]) or "")
    by_uuid = {gpu["uuid"]: gpu for gpu in found}
    shown = [by_uuid[uuid] for uuid in (visible_uuids() if found else ()) if uuid in by_uuid]
    return [{name: fact for name, fact in gpu.items() if name != "uuid"} for gpu in shown or found]


def parse_gpus(text: str) -> list[dict[str, Any]]:
    """One line for each GPU, with `GPU_FIELDS` in their order; lines of another form are left out."""
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
    return [
        {
            name: (None if cell in UNKNOWN else cell) if name in GPU_TEXTS else _number(cell)
            for name, cell in zip(GPU_FIELDS, row, strict=True)
        }
        for row in rows
        if len(row) == len(GPU_FIELDS)
    ]


def run_quietly(command: Sequence[str]) -> str | None:
    """What a command prints, or None where it is missing, fails or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _first(text: str, key: str) -> str | None:
    """The first value of a key in `key : value` lines."""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None


def _khz(path: Path) -> float | None:
    khz = _number(_read(path))
    return None if khz is None else khz / 1e3


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return None
