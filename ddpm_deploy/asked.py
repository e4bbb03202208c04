"""What the flags of `sample` ask of a sampler, whatever becomes of the samples."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from typing import Any

from ddpm_deploy import arguments
from ddpm_deploy.backends.auto import NAME as AUTO
from ddpm_deploy.bundle import Manifest
from ddpm_deploy.cli import words
from ddpm_deploy.encoder import PROMPT
from ddpm_deploy.job import plan_settings
from ddpm_deploy.plan import Plan
from ddpm_deploy.solvers import make_plan
from ddpm_deploy.turns import Turns, turns_of_words

SHOWN_WORDS = 5
logger = logging.getLogger(__name__)


def opening(asked: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `Sampler.load`, the bundle apart."""
    return {
        "backend": asked.backend,
        "precision": words(asked.precision) if asked.backend == AUTO else asked.precision,
        "device": asked.device,
        "threads": asked.threads,
    }


def chosen_plan(asked: argparse.Namespace, manifest: Manifest) -> Plan:
    """That of a file, or of a solver with its options; ValueError for both."""
    solver, options = (asked.solver, asked.steps, asked.spacing), arguments.solver_options(asked.option)
    if asked.plan is None:
        return make_plan(schedule=manifest.schedule, **plan_settings(manifest, *solver, None, options))
    if solver != (None, None, None) or options:
        raise ValueError("--plan: given together with --solver, --steps, --spacing or --option; choose one")
    return Plan.load(asked.plan)


def words_in_turn(asked: argparse.Namespace, manifest: Manifest) -> Turns:
    """The labels and prompts, of flags or of files; ValueError where a condition is given twice."""
    if asked.label is not None and asked.label_file is not None:
        raise ValueError("--label: given together with --label-file; choose one")
    if asked.prompt and asked.prompt_file is not None:
        raise ValueError("--prompt: given together with --prompt-file; choose one")
    labels = arguments.lines(asked.label_file) if asked.label_file else (asked.label or "").split(",")
    prompts = arguments.lines(asked.prompt_file) if asked.prompt_file else asked.prompt
    turns = turns_of_words(labels if asked.label is not None or asked.label_file else (), prompts, manifest)
    _warn_of_unknown(prompts, manifest)
    given = {pair.partition("=")[0] for pair in asked.condition}
    for name in given & turns.keys():
        flag = "--prompt" if name == PROMPT else "--label"
        raise ValueError(f"{flag}: given together with --condition {name}; choose one")
    return turns


def _warn_of_unknown(prompts: Sequence[str], manifest: Manifest) -> None:
    unknown = [] if manifest.tokenizer is None else manifest.tokenizer.unknown(prompts)
    if unknown:
        shown = ", ".join(map(repr, unknown[:SHOWN_WORDS])) + (", ..." if len(unknown) > SHOWN_WORDS else "")
        logger.warning("--prompt: the model was not taught %s, and is likely to draw something else", shown)
