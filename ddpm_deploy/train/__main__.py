"""`python -m ddpm_deploy.train`: train a noise predictor."""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from ddpm_deploy.backends.base import check_threads
from ddpm_deploy.cli import make_parser, run_command, some_path
from ddpm_deploy.schedule import PREDICTIONS
from ddpm_deploy.solvers import VARIANCES
from ddpm_deploy.train.config import LR_SCHEDULES, MIXED_PRECISIONS, OPTIMIZERS, TrainConfig
from ddpm_deploy.train.presets import PRESETS, SCHEDULES

DEFAULT_PRESET = "digits"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
CHOICES = {"optimizer": OPTIMIZERS, "lr_schedule": LR_SCHEDULES, "mixed_precision": MIXED_PRECISIONS}
HELP = {
    "steps": "training steps",
    "batch_size": "samples a step, over all processes",
    "lr": "learning rate",
    "optimizer": "optimiser",
    "weight_decay": "weight decay",
    "warmup_steps": "steps in which the learning rate rises",
    "lr_schedule": "learning rate after the warm-up",
    "clip_norm": "bound of the gradient's norm, or none",
    "ema_decay": "decay of the averaged weights, which are what gets exported",
    "min_snr_gamma": "bound of min-SNR loss weighting, or none for the paper's simple loss",
    "vlb_weight": "share of the variational bound in the loss of a learned variance",
    "condition_dropout": "share of the samples that are shown without their label or caption, which guidance needs",
    "mixed_precision": "precision of the network's inner arithmetic",
    "flip": "mirror half of the pictures",
    "seed": "of the weights, the order of the data, and the noise",
    "checkpoint_every": "steps between checkpoints",
    "keep": "checkpoints to keep",
    "log_every": "steps between rows of metrics.csv",
    "sample_every": "steps between grids of samples; 0 draws none",
    "sample_count": "samples in a grid",
    "sample_steps": "DDIM steps for a grid",
    "workers": "processes that read data",
    "tensorboard": "write TensorBoard event files",
}


def build_parser() -> argparse.ArgumentParser:
    """The command's options; those that a preset fills have no default of their own."""
    parser = make_parser("train", "Train a noise predictor. What is not given comes from the preset.")
    kinds = "; ".join(f"{name}: {preset.summary}" for name, preset in PRESETS.items())
    parser.add_argument("--out", required=True, type=some_path, metavar="RUN", help="folder of the run")
    _option(parser, "--preset", choices=PRESETS, help=f"{kinds} (default: {DEFAULT_PRESET}; not with --resume)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out from its newest checkpoint")
    group = parser.add_argument_group("what to train (not with --resume)")
    _option(
        group,
        "--data",
        help="digits, captioned-digits, shapes, folder:PATH (any images) or cifar10:PATH (folder or .tar.gz)",
    )
    _option(group, "--size", type=int, help="side of the pictures of a folder, in pixels")
    _option(group, "--channels", type=int, choices=(1, 3), help="channels of the pictures of a folder")
    _option(group, "--labels", action=argparse.BooleanOptionalAction, help="draw by class; in a folder, its subfolders")
    _option(group, "--network", type=Path, metavar="JSON", help='file with {"kind": ..., "config": {...}}')
    _option(group, "--prediction", choices=PREDICTIONS, help="what the network predicts")
    _option(group, "--schedule", choices=SCHEDULES, help="noise schedule")
    _option(group, "--timesteps", type=int, metavar="T", help="length of the noise schedule")
    _option(group, "--variance", choices=VARIANCES, help="of DDPM's reverse step; learned: by the network")
    group = parser.add_argument_group("how to train (with --resume: what shall change)")
    for setting in fields(TrainConfig):
        _setting(group, setting.name, str(setting.type))
    parser.add_argument("--cpu", action="store_true", help="leave the GPU alone")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; without it, torch decides")
    parser.add_argument("--quiet", action="store_true", help="show no progress bar")
    parser.add_argument("--json", dest="as_json", action="store_true", help="print the result as JSON")
    return parser


def _option(group: Any, flag: str, **options: Any) -> None:
    group.add_argument(flag, default=argparse.SUPPRESS, **options)


def _setting(group: Any, name: str, kind: str) -> None:
    usual = getattr(PRESETS[DEFAULT_PRESET].config, name)
    options: dict[str, Any] = {"help": f"{HELP[name]} ({DEFAULT_PRESET}: {usual})", "dest": name}
    if kind == "bool":
        options["action"] = argparse.BooleanOptionalAction
    else:
        options |= {"type": TYPES[kind], "choices": CHOICES.get(name)}
    _option(group, f"--{name.replace('_', '-')}", **options)


def _number_or_none(text: str) -> float | None:
    return None if text == "none" else float(text)


TYPES = {"int": int, "float": float, "str": str, "float | None": _number_or_none}


def run(
    out: Path,
    preset: str | None = None,
    resume: bool = False,
    cpu: bool = False,
    threads: int | None = None,
    quiet: bool = False,
    as_json: bool = False,
    **given: Any,
) -> int:
    """Train or resume; returns 0, or 128 and the number of the signal that stopped it."""
    import torch

    from ddpm_deploy.train.api import run_trainer
    from ddpm_deploy.train.setup import new_run, resumed_run

    if resume and preset is not None:
        raise ValueError("preset: a run that is resumed has its settings already; leave --preset out")
    if threads is not None:
        check_threads(threads)
        torch.set_num_threads(threads)
    start = PRESETS[preset or DEFAULT_PRESET]
    shown = not quiet and not _rank()
    network, data, description = resumed_run(out, given, shown) if resume else new_run(out, start, given, shown)
    began = time.perf_counter()
    with stop_signals() as stopped:
        steps = run_trainer(
            network, data, description, out, cpu=cpu, resume=resume, stop=lambda: bool(stopped), progress=not quiet
        )
    seconds = time.perf_counter() - began
    _tell(out, steps, description.training.steps, seconds, as_json)
    return 128 + stopped[0] if stopped and steps < description.training.steps else 0


def _tell(out: Path, steps: int, wanted: int, seconds: float, as_json: bool) -> None:
    if _rank():
        return
    if as_json:
        print(json.dumps({"run": str(out), "steps": steps, "complete": steps == wanted, "seconds": round(seconds, 3)}))
    elif steps < wanted:
        print(f"stopped after step {steps} of {wanted}; the checkpoint is written, continue with --resume")
    else:
        print(f"trained {steps} steps in {seconds:.0f} s: {out}")


def _rank() -> int:
    """Of this process among those that train together."""
    return int(os.environ.get("RANK", "0"))


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect the first SIGINT or SIGTERM in the list instead of dying; the second one interrupts at once."""
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_command(build_parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
