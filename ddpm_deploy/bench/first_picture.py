"""Draw one picture in a process of its own and say what it took: the child of `ddpm_deploy.bench.process`.

Nothing is imported here that drawing does not need.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from ddpm_deploy import Sampler

STATUS = Path("/proc/self/status")


def main(began: float) -> None:
    """Print the figures as one line. began: `time.perf_counter()` before anything was imported."""
    args = build_parser().parse_args()
    imported = time.perf_counter()
    with Sampler.load(
        args.bundle, backend=args.backend, precision=args.precision, device=args.device, threads=args.threads
    ) as sampler:
        loaded = time.perf_counter()
        sampler.sample(1, solver=args.solver, steps=args.steps)
        drawn = time.perf_counter()
        figures = {
            "import_s": imported - began,
            "load_s": loaded - imported,
            "first_picture_s": drawn - loaded,
            "peak_rss_bytes": peak_rss_bytes(),
        }
        print(json.dumps(figures), flush=True)
        if args.hold:
            sys.stdin.read()


def build_parser() -> argparse.ArgumentParser:
    """What the parent tells its child."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("bundle", help="folder or lone ONNX file")
    parser.add_argument("--backend", default="onnxruntime", help="runtime")
    parser.add_argument("--precision", default="fp32", help="of the denoiser")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--solver", help="None is the bundle's own")
    parser.add_argument("--steps", type=int, help="of the solver; None is the bundle's own")
    parser.add_argument("--threads", type=int, help="of one call; None is every CPU")
    parser.add_argument("--hold", action="store_true", help="keep the device's memory until standard input closes")
    return parser


def peak_rss_bytes() -> int | None:
    """The most memory that this process held at once; None where the system does not tell.

    On Linux from VmHWM, which starts anew with each program, while ru_maxrss starts at the size of the parent.
    """
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
