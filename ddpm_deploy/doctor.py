"""Say which runtimes can be had on this machine, what they really compute on, and how to get the others."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_deploy import __version__
from ddpm_deploy.backends import Availability, available_backends
from ddpm_deploy.backends.base import one_line, usable_cpus
from ddpm_deploy.backends.tensorrt.status import statuses
from ddpm_deploy.cli import make_parser, run_command

CPU_FEATURES = {
    "x86_64": ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8"),
    "aarch64": ("asimddp", "i8mm", "bf16", "sve"),
}
ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-qnn")
EXTRAS = {
    "export": ("torch", "onnx", "onnxscript", "safetensors"),
    "train": ("torch", "safetensors", "accelerate", "tensorboard", "scikit-learn", "matplotlib"),
    "plot": ("matplotlib",),
    "cuda": ("cuda-bindings", "nvidia-cuda-nvrtc"),
}
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
CUDA_REMEDIES = {
    "torch": "install the CUDA build of PyTorch, as its Get Started page says",
    "onnxruntime": "pip uninstall -y onnxruntime && pip install 'ddpm-deploy[gpu]'",
}


def examine() -> dict[str, Any]:
    """Everything that the report says, ready for JSON; `usable` is whether any backend computes here."""
    backends = [_backend(found) for found in available_backends().values()]
    return {
        "version": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "numpy": np.__version__,
        "system": f"{platform.platform()}, {platform.machine()}",
        "cpu": _cpu(),
        "backends": backends,
        "extras": [_extra(name, packages) for name, packages in EXTRAS.items()],
        "problems": clashes() + idle_gpus(backends, has_nvidia_gpu=NVIDIA_DRIVER.exists()),
        "engines": [dataclasses.asdict(status) for status in statuses()],
        "usable": any(backend["available"] for backend in backends),
    }


def clashes() -> list[dict[str, str]]:
    """Packages that overwrite each other's files."""
    there = [name for name in ONNXRUNTIMES if _version(name)]
    if len(there) < 2:
        return []
    extra = "gpu" if "onnxruntime-gpu" in there else "cpu"
    return [
        {
            "reason": f"{' and '.join(there)} are installed together: they share one module and break each other",
            "remedy": f"pip uninstall -y {' '.join(there)} && pip install 'ddpm-deploy[{extra}]'",
        }
    ]


def idle_gpus(backends: Sequence[dict[str, Any]], *, has_nvidia_gpu: bool) -> list[dict[str, str]]:
    """Backends that are installed but do not see the NVIDIA GPU of this machine."""
    if not has_nvidia_gpu:
        return []
    blind = [
        backend
        for backend in backends
        if backend["name"] in CUDA_REMEDIES
        and backend["version"]
        and not any(device["name"].startswith("cuda") for device in backend["devices"])
    ]
    return [
        {
            "reason": f"this machine has an NVIDIA GPU, but {backend['name']} {backend['version']} does not see it",
            "remedy": CUDA_REMEDIES[backend["name"]],
        }
        for backend in blind
    ]


def cpu_flags(cpuinfo: str) -> set[str]:
    """The instruction sets in the text of /proc/cpuinfo (x86 says `flags`, Arm says `Features`)."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


def render(report: dict[str, Any], *, yes: str = "✓", no: str = "✗", arrow: str = "→") -> str:
    """The report for people."""
    cpu = report["cpu"]
    features = "  ".join(f"{yes if there else no} {name}" for name, there in cpu["features"].items())
    lines = [
        f"ddpm-deploy {report['version']}",
        f"  Python    {report['python']}, numpy {report['numpy']}",
        f"  System    {report['system']}",
        f"  CPU       {cpu['model']}, {cpu['usable']} of {cpu['count']} CPUs usable",
        f"            {features or 'instruction sets unknown on this system'}",
        "",
        "Backends",
    ]
    for backend in report["backends"]:
        lines += _backend_lines(backend, {True: yes, False: no}, arrow)
    lines += ["", "Engine builders"]
    for status in report["engines"]:
        lines += _builder_lines(status, {True: yes, False: no})
    lines += ["", "Optional packages"]
    width = max(len(extra["name"]) for extra in report["extras"])
    for extra in report["extras"]:
        state = ", ".join(f"{name} {version or 'missing'}" for name, version in extra["packages"].items())
        lines.append(f"  {yes if not extra['remedy'] else no} {extra['name']:<{width}}  {state}")
        lines += [f"    {'':<{width}}  {arrow} {extra['remedy']}"] if extra["remedy"] else []
    for problem in report["problems"]:
        lines += ["", f"Problem: {problem['reason']}", f"  {arrow} {problem['remedy']}"]
    if not report["usable"]:
        lines += ["", "No backend is usable: install one with a command above."]
    return "\n".join(lines)


def _backend_lines(backend: dict[str, Any], mark: dict[bool, str], arrow: str) -> list[str]:
    head = f"  {mark[backend['available']]} {backend['name']:<12} "
    indent = " " * len(head)
    if backend["version"] is None:
        return [f"{head}{backend['reason']}", f"{indent}{arrow} {backend['remedy']}"]
    lines = [f"{head}{backend['version']:<14}{', '.join(backend['precisions'])}"]
    for device in backend["devices"]:
        text = device["placement"] or device["error"]
        lines.append(f"{indent}{mark[device['error'] is None]} {device['name']:<12}{text}")
    return lines


def _builder_lines(status: dict[str, Any], mark: dict[bool, str]) -> list[str]:
    head = f"  {mark[status['builds']]} {status['name']:<12} "
    if status["version"] is None:
        return [f"{head}{status['reason'].removeprefix(status['name'] + ': ')}"]
    can = f"{mark[status['builds']]} builds engines  {mark[status['runs']]} can run them"
    reason = [f"{'':<{len(head)}}{status['reason']}"] if status["reason"] else []
    return [f"{head}{status['version']:<14}{can}", *reason]


def _backend(found: Availability) -> dict[str, Any]:
    devices = [_device(found.name, device) for device in found.devices]
    return {
        "name": found.name,
        "available": found.available and any(device["error"] is None for device in devices),
        "version": found.version,
        "precisions": list(found.precisions),
        "devices": devices,
        "reason": found.reason,
        "remedy": found.remedy,
    }


def _device(name: str, device: str) -> dict[str, Any]:
    from ddpm_deploy.backends.probe import probe

    try:
        return {"name": device, "placement": probe(name, device), "error": None}
    except Exception as error:  # a broken installation may raise anything, and that is what is to be reported
        return {"name": device, "placement": None, "error": one_line(error)}


def _cpu() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    flags = cpu_flags(text)
    names = CPU_FEATURES.get(platform.machine(), ()) if flags else ()
    models = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return {
        "model": models[0] if models else platform.processor() or platform.machine(),
        "count": os.cpu_count(),
        "usable": usable_cpus(),
        "features": {name: name in flags for name in names},
    }


def _extra(name: str, packages: Sequence[str]) -> dict[str, Any]:
    versions = {package: _version(package) for package in packages}
    missing = None in versions.values()
    return {"name": name, "packages": versions, "remedy": f"pip install 'ddpm-deploy[{name}]'" if missing else None}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def build_parser() -> argparse.ArgumentParser:
    """The command line of `ddpm-deploy doctor`."""
    parser = make_parser("doctor", "Say which runtimes can be had on this machine, and how to get the others.")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def run(*, json: bool) -> int:
    """Print the report; 0 if at least one backend is usable, else 1."""
    report = examine()
    print(_to_json(report) if json else render(report, **_marks()))
    return 0 if report["usable"] else 1


def _marks() -> dict[str, str]:
    """Signs that the terminal can show."""
    try:
        "✓✗→".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return {"yes": "+", "no": "-", "arrow": "->"}
    return {}


def _to_json(report: dict[str, Any]) -> str:
    return json.dumps(report, indent=2)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `ddpm-deploy doctor`."""
    return run_command(build_parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
