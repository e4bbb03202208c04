"""`python -m ddpm_deploy.sample`: draw samples from a bundle into pictures, an array, or many shards."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_deploy import arguments
from ddpm_deploy.asked import chosen_plan, opening, words_in_turn
from ddpm_deploy.backends import BACKENDS
from ddpm_deploy.backends.auto import NAME as AUTO
from ddpm_deploy.bench.machine import memory_bytes
from ddpm_deploy.bulk.command import draw_shards, verify_shards
from ddpm_deploy.bulk.files import FORMATS
from ddpm_deploy.bulk.order import SHARD_SIZE
from ddpm_deploy.cli import PACKAGED, make_parser, run_command, some_path
from ddpm_deploy.images import NETWORK_RANGE, check_layout
from ddpm_deploy.picture_files import check_output, write_animation, write_samples
from ddpm_deploy.sampler import BATCH_SIZE, Sampler
from ddpm_deploy.solvers import SOLVERS
from ddpm_deploy.spacing import SPACINGS
from ddpm_deploy.turns import taken

OF_PICTURES = ("x_T", "noise", "animate", "columns", "scale")
OF_SHARDS = ("shard_size", "shard_format", "shard", "ray", "ray_workers", "verify")
OF_VERIFY = {"out", "shards", "verify", "json"}


def build_parser() -> argparse.ArgumentParser:
    """The command line of `sample`."""
    parser = make_parser("sample", "Draw samples from a bundle.")
    add = parser.add_argument
    add("bundle", nargs="?", help=f"bundle folder, lone .onnx file, or {PACKAGED}")
    where = parser.add_mutually_exclusive_group(required=True).add_argument
    where("--out", type=some_path, metavar="PATH", help="X.png: a grid; X.npy: float32 (n, *S); X/: a PNG each")
    where("--shards", type=some_path, metavar="DIR", help="a folder of shards, for many samples; goes on where it was")
    add("--num", type=int, default=16, help="how many samples")
    add("--solver", choices=SOLVERS, metavar="NAME", help=f"one of {', '.join(SOLVERS)}; default: the bundle's")
    add("--steps", type=int, help="1 to T; default: the bundle's, or T for ddpm")
    add("--spacing", choices=SPACINGS, metavar="NAME", help=f"one of {', '.join(SPACINGS)}; default: the bundle's")
    add("--option", action="append", default=[], metavar="NAME=VALUE", help="option of the solver, such as eta=0.5")
    add("--seed", type=int, default=0, help="the same seed gives the same samples on every backend")
    add("--start", type=int, default=0, help="index of the first sample within the seed")
    add("--size", type=arguments.size, metavar="HxW", help="of pictures, where it is free; default: the trained one")
    add("--backend", choices=(*BACKENDS, AUTO), default="onnxruntime", help=f"runtime; {AUTO}: as `tune` chose it")
    add("--precision", default="fp32", help=f"a precision that the backend or the bundle has; {AUTO} takes A,B or any")
    add("--device", default="cpu", help="such as cpu or cuda:0")
    add("--threads", type=int, help="threads of one call; default: every CPU that the process may use")
    add("--batch-size", type=int, default=BATCH_SIZE, help="samples that share a call of the network")
    add("--plan", type=some_path, metavar="FILE", help="plan (.json or .npz) instead of solver, steps and spacing")
    add("--x-T", dest="x_T", type=some_path, metavar="FILE.npy", help="starting noise (n, *S), not the seed's")
    add("--noise", type=some_path, metavar="FILE.npy", help="noise of the rows, (N, n, *S) or broadcastable")
    add(
        "--label",
        metavar="A,B",
        help="classes by name or number, in turn; default: none, where the model can do without",
    )
    add(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="what to draw, in words; several are taken in turn",
    )
    add("--label-file", type=some_path, metavar="FILE", help="classes, one a line, in turn")
    add("--prompt-file", type=some_path, metavar="FILE", help="prompts, one a line, in turn")
    add("--guidance", type=float, default=1.0, metavar="W", help="how far to exaggerate the condition; 1: as it is")
    add(
        "--guidance-interval",
        type=arguments.interval,
        metavar="LOW,HIGH",
        help="timesteps at which the guidance counts",
    )
    add("--condition", action="append", default=[], metavar="NAME=FILE.npy", help="a condition tensor, (n, ...)")
    add("--animate", type=some_path, metavar="FILE.gif", help="also write the denoising as an animation")
    add("--columns", type=int, help="columns of the grid; default: near a square")
    add("--scale", type=int, help="enlarge each pixel; default: small pictures to about 64 pixels")
    add("--digest", metavar="sha256:...", help="refuse any other bundle than this")
    add("--print-plan", action="store_true", help="show the table of coefficients")
    add("--json", action="store_true", help="print what was done as JSON")
    _add_shard_flags(parser)
    return parser


def _add_shard_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("with --shards").add_argument
    add("--shard-size", type=int, default=SHARD_SIZE, help="samples of a shard; the last one may have fewer")
    add("--shard-format", choices=FORMATS, default="tar", help="tar: PNG and JSON, for WebDataset; npz: float32")
    add("--shard", type=arguments.part, default="1/1", metavar="I/N", help="draw only the I-th of N parts, by hand")
    add("--ray", action="store_true", help="draw on a Ray cluster, whose machines share DIR; the local one, if none")
    add("--ray-workers", type=int, metavar="N", help="samplers that Ray runs at once; default: what its CPUs allow")
    add("--verify", action="store_true", help="draw nothing: read the shards, and tell what is missing or damaged")


def run(**given: Any) -> int:
    """Draw and write; see `build_parser` for the arguments."""
    asked = argparse.Namespace(**given)
    if asked.shards is None:
        _refuse(asked, OF_SHARDS, "--out")
        return draw_pictures(asked)
    if asked.verify:
        _refuse(asked, sorted(given.keys() - OF_VERIFY), "--verify")
        return verify_shards(asked)
    _refuse(asked, OF_PICTURES, "--shards")
    return draw_shards(asked)


def draw_pictures(asked: argparse.Namespace) -> int:
    """`--out`: everything in one call of the sampler."""
    check_layout(asked.columns, asked.scale)
    given = {"x_T": arguments.array(asked.x_T), "noise": arguments.array(asked.noise)}
    conditions = arguments.conditions(asked.condition)
    with Sampler.load(asked.bundle, digest=asked.digest, **opening(asked)) as sampler:
        check_output(asked.out, asked.animate, sampler.manifest.sample_shape)
        plan = chosen_plan(asked, sampler.manifest)
        if asked.print_plan:
            print(plan, file=sys.stderr if asked.json else sys.stdout)
        n = asked.num if given["x_T"] is None else len(given["x_T"])
        channels, *size = sampler.manifest.sample_shape
        _check_memory(n, (channels, *(asked.size or size)))
        conditions |= taken(words_in_turn(asked, sampler.manifest), range(n))
        request = {"n": n, "plan": plan, "seed": asked.seed, "start": asked.start, "size": asked.size, **given,
                   "condition": conditions, "guidance": asked.guidance,
                   "guidance_interval": asked.guidance_interval}  # fmt: skip
        look = {
            "bounds": sampler.manifest.clip or NETWORK_RANGE,
            "columns": asked.columns,
            "scale": asked.scale,
        }
        began = time.perf_counter()
        samples = _drawn(sampler, request, asked, look)
        seconds = time.perf_counter() - began
    written = write_samples(samples, asked.out, look, asked.start)
    report = {
        "written": [str(path) for path in [*written, *([asked.animate] if asked.animate else [])]],
        "samples": len(samples),
        "solver": plan.solver,
        "nfe": plan.nfe,
        "seed": asked.seed,
        "backend": asked.backend,
        "precision": sampler.backend.precision,
        "seconds": round(seconds, 3),
    }
    print(json.dumps(report) if asked.json else _sentence(report, asked.out, asked.animate))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_command(build_parser(), run, argv)


def _drawn(sampler: Sampler, request: dict[str, Any], asked: argparse.Namespace, look: dict[str, Any]) -> Any:
    if asked.animate is None:
        progress = not asked.json and sys.stderr.isatty()
        return sampler.sample(batch_size=asked.batch_size, progress=progress, **request)
    if request["n"] > asked.batch_size:
        raise ValueError(f"--animate: shows one batch; got {request['n']} samples in batches of {asked.batch_size}")
    return write_animation(sampler.stream(**request), request["plan"].nfe, asked.animate, look)


def _check_memory(n: int, shape: Sequence[int]) -> None:
    """ValueError for more samples than half of the machine's memory holds; the other half goes to their pictures."""
    needed, memory = n * math.prod(shape) * np.dtype(np.float32).itemsize, memory_bytes()
    if memory is not None and needed > memory / 2:
        raise ValueError(
            f"--num: {n} samples take {needed / 2**30:.3g} GiB, and this machine has {memory / 2**30:.3g}; "
            "ask for fewer, or draw them into files as you go, with --shards"
        )


def _sentence(report: dict[str, Any], out: Path, animate: Path | None) -> str:
    also = f" and {animate}" if animate else ""
    return (
        f"{out}{also}: {report['samples']} samples, {report['solver']} with {report['nfe']} evaluations, "
        f"{report['backend']} {report['precision']}, {report['seconds']:.2f} s"
    )


def _refuse(asked: argparse.Namespace, names: Sequence[str], beside: str) -> None:
    """ValueError for flags that mean nothing beside another."""
    defaults = vars(build_parser().parse_args(["--out", "x"]))
    for name in names:
        if getattr(asked, name) != defaults[name]:
            flag = name if name == "bundle" else f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag}: means nothing beside {beside}; leave one of the two out")


if __name__ == "__main__":
    raise SystemExit(main())
