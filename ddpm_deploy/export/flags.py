"""The command's flags: each one that changes what is exported sets one value of the recipe."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ddpm_deploy.cli import make_parser, some_path, words
from ddpm_deploy.export.recipe import Values, parse_assignment, read_recipe, set_value
from ddpm_deploy.export.targets import CHOICES, GRAPHS, PRECISIONS
from ddpm_deploy.schedule import PREDICTIONS


@dataclass(frozen=True)
class Flag:
    """One flag. key: what it sets in the recipe. read: from the text; None for a switch."""

    name: str
    key: str
    read: Callable[[str], Any] | None
    help: str
    metavar: str | None = None


def numbers(text: str) -> list[int]:
    """`1,4,8`."""
    return [int(word) for word in words(text)]


def schedule(text: str) -> dict[str, Any]:
    """`linear:T=1000,beta_start=1e-4`."""
    kind, _, rest = text.partition(":")
    if not all("=" in item for item in words(rest)):
        raise ValueError("expected KIND:NAME=VALUE,NAME=VALUE")
    return {"kind": kind, **dict(parse_assignment(item) for item in words(rest))}


def bounds(text: str) -> Any:
    """`-1,1`, or a word."""
    return [float(word) for word in words(text)] if "," in text else text


def table(text: str) -> Any:
    """A JSON object."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("expected a JSON object")
    return value


GROUPS: dict[str, tuple[Flag, ...]] = {
    "what to write": (
        Flag("--target", "export.targets", words,
             f"runtimes, some of {', '.join(CHOICES)}; onnxruntime-cpu if not given", "A,B"),
        Flag("--precision", "export.precisions", words, f"some of {', '.join(PRECISIONS)}; fp32 if not given", "A,B"),
        Flag("--graph", "export.graphs", words, f"{', '.join(GRAPHS)}; all that the targets have if not given", "A,B"),
        Flag("--opset", "export.opset", int, "ONNX operator set, 18 to 25; of each target the fastest if not given"),
        Flag("--unroll", "export.unroll", None, "write `sampler` for GPUs without control flow, for the default plan"),
        Flag("--free-size", "export.free_size", None, "leave height and width of pictures free"),
        Flag("--share-weights", "export.share_weights", None, "keep large tensors in one file that the graphs share"),
    ),
    "what the model is, where its source does not say": (
        Flag("--sample-shape", "source.sample_shape", numbers, "such as 3,32,32", "C,H,W"),
        Flag("--schedule", "source.schedule", schedule, "such as linear:T=1000,beta_start=1e-4", "KIND:A=B"),
        Flag("--prediction", "source.prediction", str, f"{', '.join(PREDICTIONS)}"),
        Flag("--variance", "source.variance", str, "small, large or learned"),
        Flag("--clip", "source.clip", bounds, "range of the clean sample, such as --clip=-1,1, or none", "LOW,HIGH"),
        Flag("--factory-options", "source.factory_options", table, "arguments of a factory, as a JSON object", "JSON"),
        Flag("--weights", "source.weights", str, "safetensors file to fill the factory's module from", "FILE"),
        Flag("--step", "source.step", int, "checkpoint of a run; the newest if not given"),
        Flag("--x-name", "source.x_name", str, "the noisy sample's input in an ONNX file"),
        Flag("--t-name", "source.t_name", str, "the timestep's input in an ONNX file"),
        Flag("--output-name", "source.output_name", str, "the prediction's output in an ONNX file"),
        Flag("--allow-scalar-timestep", "source.allow_scalar_timestep", None,
             "take an ONNX file with one t for the whole batch"),
    ),
    "what the bundle says": (
        Flag("--name", "model.name", str, "name of the model; the source's if not given"),
        Flag("--model-version", "model.version", str, "version of the model, any text; 1 if not given"),
        Flag("--licence", "model.licence", str, "licence of the weights; unspecified if not given"),
        Flag("--solver", "plan.solver", str, "default solver of the bundle"),
        Flag("--steps", "plan.steps", int, "default number of steps"),
        Flag("--spacing", "plan.spacing", str, "default spacing of the timesteps"),
    ),
    "parity": (
        Flag("--batches", "export.batches", numbers,
             "batch sizes that parity is checked at; 1,2,7 if not given", "1,4,8"),
        Flag("--max-relative-error", "export.max_relative_error", float,
             "budget of fp32 predictions, relative L2; 1e-5 if not given"),
        Flag("--parity-timesteps", "export.parity_timesteps", int, "check at this many timesteps; all if not given"),
        Flag("--calibration-states", "export.calibration_states", int,
             "states that int8 is calibrated on; 64 if not given"),
        Flag("--rank-layers", "export.rank_layers", None,
             "measure what each layer costs in int8 even where all are within budget; slow for large networks"),
        Flag("--allow-parity-failure", "export.allow_parity_failure", None,
             "write over budget too, marked so that the sampler warns"),
    ),
}  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments; what is not given stays out of the namespace's recipe values."""
    parser = make_parser(
        "export", "Write a trained model as a bundle, after checking parity with the float32 original."
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", nargs="?", default=argparse.SUPPRESS,
        help="a run of ddpm_deploy.train, a diffusers folder, package.module:factory, an .onnx file or a "
        "denoising-diffusion-pytorch checkpoint, or a bundle for its page; the recipe's path if not given")  # fmt: skip
    add(
        "--out",
        metavar="BUNDLE",
        type=some_path,
        default=argparse.SUPPRESS,
        help="folder to write; a bundle is replaced. The page, where SOURCE is a bundle",
    )
    add("--recipe", metavar="FILE", type=some_path, default=argparse.SUPPRESS,
        help="TOML with any of what the flags say")  # fmt: skip
    add("--set", metavar="KEY=VALUE", action="append", default=argparse.SUPPRESS,
        help="any value of the recipe, such as export.budgets.fp16.next_state_rms=1e-3")  # fmt: skip
    for title, flags in GROUPS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            _add(group, flag)
    group = parser.add_argument_group("this command")
    group.add_argument("--print-recipe", action="store_true", default=argparse.SUPPRESS,
                       help="print the effective recipe and write nothing")  # fmt: skip
    group.add_argument("--plot", metavar="PNG", type=some_path, default=argparse.SUPPRESS,
                       help="draw the error of every denoiser over t (needs matplotlib)")  # fmt: skip
    group.add_argument("--triton-out", metavar="DIR", type=some_path, default=argparse.SUPPRESS,
                       help="model repository of target triton; BUNDLE.triton if not given")  # fmt: skip
    group.add_argument("--web-out", metavar="DIR", type=some_path, default=argparse.SUPPRESS,
                       help="page of target web; BUNDLE.web if not given")  # fmt: skip
    group.add_argument("--onnxruntime-web", metavar="PATH", type=some_path, default=argparse.SUPPRESS,
                       help="copy of onnxruntime-web for target web: as npm unpacks it, or its .tgz; npm fetches it "
                       "if not given")  # fmt: skip
    group.add_argument("--quiet", action="store_true", default=argparse.SUPPRESS, help="show no progress bar")
    group.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print the result as JSON")
    return parser


def recipe_values(given: dict[str, Any]) -> Values:
    """The recipe's file, changed by the flags: --set last, so that it can say anything."""
    values = read_recipe(given["recipe"]) if "recipe" in given else {}
    if "source" in given:
        values["path"] = given["source"]
    for flag in (flag for flags in GROUPS.values() for flag in flags):
        if flag.key in given:
            set_value(values, flag.key, given[flag.key])
    for text in given.get("set", ()):
        set_value(values, *parse_assignment(text))
    return values


def _add(group: argparse._ArgumentGroup, flag: Flag) -> None:
    if flag.read is None:
        group.add_argument(flag.name, dest=flag.key, action="store_true", default=argparse.SUPPRESS, help=flag.help)
        return
    read = flag.read
    group.add_argument(flag.name, dest=flag.key, metavar=flag.metavar or flag.name.rsplit("-", 1)[-1].upper(),
                       type=lambda text: _read(read, text), default=argparse.SUPPRESS, help=flag.help)  # fmt: skip


def _read(read: Callable[[str], Any], text: str) -> Any:
    try:
        return read(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"got {text!r}: {error}") from None
