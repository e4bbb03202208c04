"""What one picture costs a process that has only just started, with diffusers.

    python benchmarks/cold_diffusers.py FOLDER --steps 12

FOLDER is what `peers.save_diffusers` wrote. Imports what is needed and no more, loads the network, draws one picture
with UniPC, and prints one line of JSON: the seconds of each part, and its peak of memory.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def draw(network: Any, scheduler: Any, steps: int, seed: int) -> Any:
    """One picture (1, C, H, W) in network range, as diffusers' documentation has the loop."""
    import torch

    size = network.config.sample_size
    sides = (size, size) if isinstance(size, int) else size
    scheduler.set_timesteps(steps, device=network.device)
    with torch.inference_mode():
        x = torch.randn((1, network.config.in_channels, *sides), generator=torch.Generator().manual_seed(seed))
        x = x.to(network.device)
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t).sample, t, x).prev_sample
    return x.cpu()


def peak_rss_bytes() -> int:
    """The most memory that this process held.

    On Linux from /proc, as `ru_maxrss` also counts what the parent held when it started this process.
    """
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--order", type=int, default=3, help="of UniPC (default: 3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="of torch (default: its own choice)")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    report: dict[str, Any] = {}
    modules = timed(report, "import_s", imported)
    if args.threads is not None:
        modules["torch"].set_num_threads(args.threads)
    network, scheduler = timed(report, "load_s", lambda: loaded(modules, args.folder, args.order, args.device))
    x = timed(report, "first_picture_s", lambda: draw(network, scheduler, args.steps, args.seed))
    report |= {"peak_rss_bytes": peak_rss_bytes(), "steps": args.steps}
    report |= {name: module.__version__ for name, module in modules.items()}
    print(json.dumps({**report, "finite": bool(x.isfinite().all()), "threads": modules["torch"].get_num_threads()}))


def imported() -> dict[str, Any]:
    """The modules, with the classes that are lazily behind diffusers' names."""
    import diffusers
    import torch
    from diffusers import UNet2DModel, UniPCMultistepScheduler  # noqa: F401

    diffusers.logging.set_verbosity_error()
    return {"torch": torch, "diffusers": diffusers}


def loaded(modules: dict[str, Any], folder: Path, order: int, device: str) -> tuple[Any, Any]:
    """Network, in the faster memory layout, and scheduler of the folder."""
    diffusers = modules["diffusers"]
    network = diffusers.UNet2DModel.from_pretrained(folder, subfolder="unet", use_safetensors=True).eval()
    network = network.to(device, memory_format=modules["torch"].channels_last)
    scheduler = diffusers.UniPCMultistepScheduler.from_pretrained(folder, subfolder="scheduler", solver_order=order)
    return network, scheduler


def timed(report: dict[str, Any], name: str, work: Callable[[], Any]) -> Any:
    """The result of the work; its seconds go into the report."""
    began = time.perf_counter()
    result = work()
    report[name] = time.perf_counter() - began
    return result


if __name__ == "__main__":
    main()
