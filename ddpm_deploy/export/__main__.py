"""`python -m ddpm_deploy.export RUN --out BUNDLE`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ddpm_deploy.bundle import Bundle
from ddpm_deploy.cli import make_parser, run_command
from ddpm_deploy.errors import ParityError
from ddpm_deploy.export.options import MAX_RELATIVE_ERROR, OPSET, Options

OVER_BUDGET = 1


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments; each is a parameter of `run`."""
    parser = make_parser("export", "Write a training run as a bundle, after checking parity with torch.")
    add = parser.add_argument
    add("run_path", metavar="RUN", type=Path, help="folder that ddpm_deploy.train wrote")
    add("--out", metavar="BUNDLE", type=Path, required=True, help="folder to write; a bundle there is replaced")
    add("--step", type=int, help="checkpoint to export; the newest if not given")
    add("--name", help="name of the model; the run's if not given")
    add("--model-version", default="1", help="version of the model, any text")
    add("--licence", default="unspecified", help="licence of the weights, such as Apache-2.0")
    add("--opset", type=int, default=OPSET, help="ONNX operator set, 18 to 25; 18 is the fastest on ONNX Runtime's CPU")
    add("--max-relative-error", type=float, default=MAX_RELATIVE_ERROR,
        help="parity budget: relative L2 error of a prediction")  # fmt: skip
    add("--parity-timesteps", type=int, help="check parity at this many timesteps; at all of them if not given")
    add("--quiet", action="store_true", help="show no progress bar")
    add("--json", action="store_true", help="print the result as JSON")
    return parser


def run(
    run_path: Path,
    out: Path,
    step: int | None,
    name: str | None,
    model_version: str,
    licence: str,
    opset: int,
    max_relative_error: float,
    parity_timesteps: int | None,
    quiet: bool,
    json: bool,
) -> int:
    """Export and print what was written; 1 when parity is over budget."""
    from ddpm_deploy.export import export_run  # torch takes seconds to import: not for --help

    options = Options(opset, max_relative_error, parity_timesteps, progress=not quiet)
    try:
        bundle = export_run(
            run_path, out, step=step, name=name, model_version=model_version, licence=licence, options=options
        )
    except ParityError as error:
        print(f"ddpm-deploy export: error: {error}", file=sys.stderr)
        return OVER_BUDGET
    print(_as_json(bundle) if json else _as_text(bundle))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_command(build_parser(), run, argv)


def _as_json(bundle: Bundle) -> str:
    files = [{"path": f.path, "size_bytes": f.size_bytes, "sha256": f.sha256} for f in bundle.manifest.all_files]
    parity = bundle.manifest.files[0].parity
    return json.dumps({"bundle": str(bundle.root), "digest": bundle.digest, "files": files, "parity": parity}, indent=1)


def _as_text(bundle: Bundle) -> str:
    parity = bundle.manifest.files[0].parity or {}
    lines = [f"{file.path:<36}{file.size_bytes / 2**20:8.2f} MiB" for file in bundle.manifest.all_files]
    figures = f"relative L2 {parity['relative_l2']:.2g}, max-abs {parity['max_abs']:.2g}"
    lines.append(f"parity with torch over {parity['timesteps']:.0f} timesteps: {figures}")
    return "\n".join([f"{bundle.root}", *lines, bundle.digest])


if __name__ == "__main__":
    raise SystemExit(main())
