"""`python -m benchmarks.gpu --out FILE.json`: see the package."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import benchmarks.gpu
from benchmarks.gpu.asked import MODELS, PRECISIONS, Asked
from benchmarks.gpu.run import Run
from benchmarks.gpu.table import table
from ddpm_deploy.cli import Parser, require_writable, run_command, some_path, words
from ddpm_deploy.errors import BackendUnavailable


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    about = str(benchmarks.gpu.__doc__).partition("\n\n")[2]
    look = argparse.ArgumentDefaultsHelpFormatter
    parser = Parser(prog="python -m benchmarks.gpu", description=about, formatter_class=look, allow_abbrev=False)
    parser.add_argument("--out", type=some_path, required=True, metavar="FILE.json", help="the report")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all of it; what does not fit is skipped")
    parser.add_argument("--models", type=words, default=",".join(MODELS), help="these only")
    parser.add_argument("--precisions", type=words, default=",".join(PRECISIONS), help="these only")
    parser.add_argument(
        "--rehearse", action="store_true", help="the same program on a CPU, with tiny effort: digits in fp32"
    )
    parser.add_argument("--prepare", action="store_true", help="make what is kept between runs, and measure nothing")
    return parser


def run(
    *, out: Path, minutes: float, models: Sequence[str], precisions: Sequence[str], rehearse: bool, prepare: bool
) -> int:
    """Measure, write the report, print the table last; see `build_parser` for the arguments."""
    if not minutes > 0:
        raise ValueError(f"--minutes: got {minutes:g}, expected more than 0")
    _require_known("--models", models, MODELS)
    _require_known("--precisions", precisions, PRECISIONS)
    asked = Asked(out, minutes, rehearse, tuple(models), tuple(precisions))
    if not asked.groups():
        raise ValueError(
            f"--models, --precisions: got {', '.join((*models, *precisions))}, in which nothing is measured; "
            "leave one of them out"
        )
    _require_device(asked)
    require_writable(out)
    whole = Run(asked, _progress())
    if prepare:
        whole.prepare()
        return 0
    print(f"\n{table(whole.run())}")
    return 0


def _require_known(option: str, given: Sequence[str], known: Sequence[str]) -> None:
    for word in given or [""]:
        if word not in known:
            raise ValueError(f"{option}: got {word!r}, expected some of {', '.join(known)}")


def _require_device(asked: Asked) -> None:
    """BackendUnavailable without a GPU."""
    import torch

    if not asked.rehearse and not torch.cuda.is_available():
        seen = f"PyTorch {torch.__version__}, which sees no CUDA device"
        raise BackendUnavailable(f"device: got {seen}, expected an NVIDIA GPU; try the program with --rehearse")


def _progress() -> Callable[[str], object]:
    began = time.monotonic()
    return lambda text: print(f"{time.monotonic() - began:6.1f} s  {text}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_command(build_parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
