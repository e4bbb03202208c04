"""`python -m ddpm_deploy.sample`: draw samples from a bundle into a picture, a folder of pictures or an array."""

from __future__ import annotations

import argparse
import json as json_module
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddpm_deploy.backends import BACKENDS
from ddpm_deploy.backends.auto import NAME as AUTO
from ddpm_deploy.bundle import MANIFEST_NAME, Manifest
from ddpm_deploy.cli import make_parser, require_writable, run_command, some_path, words
from ddpm_deploy.encoder import PROMPT
from ddpm_deploy.images import NETWORK_RANGE, check_layout, grid, is_picture, save_gif, to_pil
from ddpm_deploy.job import RESERVED
from ddpm_deploy.labels import labels_of
from ddpm_deploy.plan import Plan
from ddpm_deploy.sampler import BATCH_SIZE, Sampler
from ddpm_deploy.solvers import SOLVERS
from ddpm_deploy.spacing import SPACINGS

if TYPE_CHECKING:
    from ddpm_deploy.plan import Frame

GIF_FRAMES = 48
FIRST_PICTURE = "000000.png"


def build_parser() -> argparse.ArgumentParser:
    """The command line of `sample`."""
    parser = make_parser("sample", "Draw samples from a bundle.")
    add = parser.add_argument
    add("bundle", nargs="?", help="bundle folder, lone .onnx file, or digits (default) or shapes, the package's own")
    add(
        "--out",
        type=some_path,
        required=True,
        metavar="PATH",
        help="X.png: a grid; X.npy: float32 (n, *S); X/: a PNG each",
    )
    add("--num", type=int, default=16, help="how many samples")
    add("--solver", choices=SOLVERS, metavar="NAME", help=f"one of {', '.join(SOLVERS)}; default: the bundle's")
    add("--steps", type=int, help="1 to T; default: the bundle's, or T for ddpm")
    add("--spacing", choices=SPACINGS, metavar="NAME", help=f"one of {', '.join(SPACINGS)}; default: the bundle's")
    add("--option", action="append", default=[], metavar="NAME=VALUE", help="option of the solver, such as eta=0.5")
    add("--seed", type=int, default=0, help="the same seed gives the same samples on every backend")
    add("--start", type=int, default=0, help="index of the first sample within the seed")
    add("--size", type=_size, metavar="HxW", help="of pictures, where it is free; default: the trained one")
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
    add("--guidance", type=float, default=1.0, metavar="W", help="how far to exaggerate the condition; 1: as it is")
    add("--guidance-interval", type=_interval, metavar="LOW,HIGH", help="timesteps at which the guidance counts")
    add("--condition", action="append", default=[], metavar="NAME=FILE.npy", help="a condition tensor, (n, ...)")
    add("--animate", type=some_path, metavar="FILE.gif", help="also write the denoising as an animation")
    add("--columns", type=int, help="columns of the grid; default: near a square")
    add("--scale", type=int, help="enlarge each pixel; default: small pictures to about 64 pixels")
    add("--digest", metavar="sha256:...", help="refuse any other bundle than this")
    add("--print-plan", action="store_true", help="show the table of coefficients")
    add("--json", action="store_true", help="print what was done as JSON")
    return parser


def run(
    *,
    bundle: str | None,
    out: Path,
    num: int,
    solver: str | None,
    steps: int | None,
    spacing: str | None,
    option: Sequence[str],
    seed: int,
    start: int,
    size: tuple[int, int] | None,
    backend: str,
    precision: str,
    device: str,
    threads: int | None,
    batch_size: int,
    plan: Path | None,
    x_T: Path | None,
    noise: Path | None,
    label: str | None,
    prompt: Sequence[str],
    guidance: float,
    guidance_interval: tuple[float, float] | None,
    condition: Sequence[str],
    animate: Path | None,
    columns: int | None,
    scale: int | None,
    digest: str | None,
    print_plan: bool,
    json: bool,
) -> None:
    """Draw and write; see `build_parser` for the arguments."""
    arrays = {"x_T": _array(x_T), "noise": _array(noise)}
    steering = _conditions(condition)
    options = _options(option)
    if plan is not None and (solver, steps, spacing, options) != (None, None, None, {}):
        raise ValueError("--plan: given together with --solver, --steps, --spacing or --option; choose one")
    check_layout(columns, scale)
    with Sampler.load(
        bundle,
        backend=backend,
        precision=words(precision) if backend == AUTO else precision,
        device=device,
        threads=threads,
        digest=digest,
    ) as sampler:
        _check_output(out, animate, sampler.manifest.sample_shape)
        chosen = Plan.load(plan) if plan else sampler.plan(solver, steps, spacing, **options)
        if print_plan:
            print(chosen, file=sys.stderr if json else sys.stdout)
        look = {"bounds": sampler.manifest.clip or NETWORK_RANGE, "columns": columns, "scale": scale}
        count = num if arrays["x_T"] is None else len(arrays["x_T"])
        steering |= {} if label is None else dict([_labels(label, sampler.manifest, count, steering)])
        steering |= {PROMPT: _prompts(prompt, count, steering)} if prompt else {}
        request = {"n": count, "plan": chosen, "seed": seed, "start": start, "size": size, **arrays,
                   "condition": steering, "guidance": guidance, "guidance_interval": guidance_interval}  # fmt: skip
        began = time.perf_counter()
        samples = _draw(sampler, request, batch_size, animate, look, progress=not json and sys.stderr.isatty())
        seconds = time.perf_counter() - began
    written = _write(samples, out, look, start)
    report = {
        "written": [str(path) for path in [*written, *([animate] if animate else [])]],
        "samples": len(samples),
        "solver": chosen.solver,
        "nfe": chosen.nfe,
        "seed": seed,
        "backend": backend,
        "precision": sampler.backend.precision,
        "seconds": round(seconds, 3),
    }
    print(json_module.dumps(report) if json else _sentence(report, out, animate))


def _draw(
    sampler: Sampler,
    request: dict[str, Any],
    batch_size: int,
    animate: Path | None,
    look: dict[str, Any],
    progress: bool,
) -> Any:
    if animate is None:
        return sampler.sample(batch_size=batch_size, progress=progress, **request)
    if request["n"] > batch_size:
        raise ValueError(f"--animate: shows one batch; got {request['n']} samples in batches of {batch_size}")
    return _animate(sampler.stream(**request), request["plan"].nfe, animate, look)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_command(build_parser(), run, argv)


def _sentence(report: dict[str, Any], out: Path, animate: Path | None) -> str:
    also = f" and {animate}" if animate else ""
    return (
        f"{out}{also}: {report['samples']} samples, {report['solver']} with {report['nfe']} evaluations, "
        f"{report['backend']} {report['precision']}, {report['seconds']:.2f} s"
    )


def _check_output(out: Path, animate: Path | None, shape: tuple[int, ...]) -> None:
    """Refuse what cannot be written before any time is spent on sampling."""
    if out.suffix != ".npy" and not is_picture(shape):
        raise ValueError(f"--out: got {out}, but samples of shape {shape} are no pictures; give a name ending in .npy")
    if animate and not is_picture(shape):
        raise ValueError(f"--animate: samples of shape {shape} are no pictures")
    if out.suffix not in (".png", ".npy", ""):
        raise ValueError(f"--out: got {out}, expected X.png, X.npy or a folder")
    if animate and animate.suffix != ".gif":
        raise ValueError(f"--animate: got {animate}, expected X.gif")
    if (out / MANIFEST_NAME).exists():
        raise ValueError(f"--out: got {out}, which is a bundle; give another folder for the pictures")
    for file in (out if out.suffix else out / FIRST_PICTURE, *([animate] if animate else [])):
        require_writable(file)


def _write(samples: Any, out: Path, look: dict[str, Any], start: int) -> list[Path]:
    if out.suffix == ".npy":
        np.save(out, samples)
        return [out]
    if out.suffix == ".png":
        grid(samples, **look).save(out)
        return [out]
    paths = [out / f"{start + i:06d}.png" for i in range(len(samples))]
    for path, picture in zip(paths, to_pil(samples, look["bounds"]), strict=True):
        picture.save(path)
    return paths


def _animate(frames: Any, nfe: int, path: Path, look: dict[str, Any]) -> Any:
    """Consume the frames of a run, write some of them as an animation, and give back the samples."""
    shown = {round(i) for i in np.linspace(0, nfe - 1, min(nfe, GIF_FRAMES))}
    pictures = []
    frame: Frame
    for frame in frames:
        if frame.step in shown:
            pictures.append(grid(frame.x, **look))
    save_gif(pictures, path)
    return frame.x


def _size(text: str) -> tuple[int, int]:
    """`64x48`."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected HxW, such as 64x48")
    return int(height), int(width)


def _interval(text: str) -> tuple[float, float]:
    """`100,800`."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected LOW,HIGH, such as 100,800") from None
    return low, high


def _array(path: Path | None) -> Any:
    if path is None:
        return None
    try:
        array = np.load(path, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # a damaged archive raises half a dozen kinds
        raise ValueError(f"{path}: not a .npy file of numbers ({error})") from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: not a .npy file of numbers (it is an archive)")
    return array


def _conditions(pairs: Sequence[str]) -> dict[str, Any]:
    return {name: _array(Path(value)) for name, value in (_pair("--condition", pair) for pair in pairs)}


def _labels(text: str, manifest: Manifest, count: int, given: dict[str, Any]) -> tuple[str, Any]:
    name, labels = labels_of(text, manifest, count)
    if name in given:
        raise ValueError(f"--label: given together with --condition {name}; choose one")
    return name, labels


def _prompts(texts: Sequence[str], count: int, given: dict[str, Any]) -> str | list[str]:
    if PROMPT in given:
        raise ValueError(f"--prompt: given together with --condition {PROMPT}; choose one")
    return texts[0] if len(texts) == 1 else [texts[i % len(texts)] for i in range(count)]


def _options(pairs: Sequence[str]) -> dict[str, Any]:
    options = {name: _value(text) for name, text in (_pair("--option", pair) for pair in pairs)}
    for name in RESERVED & options.keys():
        raise ValueError(f"--option {name}: not an option of a solver; give --{name}")
    return options


def _pair(flag: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ValueError(f"{flag}: got {text!r}, expected NAME=VALUE")
    return name, value


def _value(text: str) -> Any:
    """A number, true, false or null as in JSON; anything else is a string."""
    try:
        return json_module.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    raise SystemExit(main())
