"""How much a torch-free service installs: `python benchmarks/service_size.py`.

Makes a fresh virtual environment, installs this package with the `cpu` extra, draws a picture there with the digits
model that comes with it, and prints the size of each installed package.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = {"pip", "setuptools", "wheel", "_distutils_hack", "pkg_resources"}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder) / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pins = ["-c", str(ROOT / "constraints.txt")]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *pins, f"{ROOT}[cpu]"], check=True)
        picture = Path(folder) / "digits.png"
        subprocess.run([python, "-m", "ddpm_deploy.sample", "--out", picture], check=True, cwd=folder)
        sizes = installed(next(Path(folder).glob("lib/python*/site-packages")))
    for name, size in sorted(sizes.items(), key=lambda item: -item[1]):
        print(f"{name:<24}{size / 2**20:8.1f} MiB")
    print(f"{'in all':<24}{sum(sizes.values()) / 2**20:8.1f} MiB")


def installed(packages: Path) -> dict[str, int]:
    """Bytes of each top-level folder; its native libraries and metadata count with it."""
    sizes: dict[str, int] = {}
    for entry in packages.iterdir():
        name = entry.name.split("-")[0].removesuffix(".libs").removesuffix(".py").lower()
        if name in TOOLS or entry.name.startswith(("__", "pip-", "setuptools-", "distutils")):
            continue
        files = [entry] if entry.is_file() else [file for file in entry.rglob("*") if file.is_file()]
        sizes[name] = sizes.get(name, 0) + sum(file.stat().st_size for file in files)
    return sizes


if __name__ == "__main__":
    main()
