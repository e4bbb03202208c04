"""`python -m ddpm_deploy.build BUNDLE`: TensorRT engines of a bundle's graphs, on the machine where they will run.

Needs the runtime only, no torch and no onnx.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ddpm_deploy.backends.tensorrt import (
    BuildSettings,
    EngineCache,
    EngineKey,
    EngineRecord,
    engine_key,
    ensure_engine,
    find_gpu,
    make_builder,
    open_adapter,
)
from ddpm_deploy.backends.tensorrt.adapter import LOG_NAME, MODULES
from ddpm_deploy.backends.tensorrt.cache import VARIABLE
from ddpm_deploy.backends.tensorrt.engines import usable
from ddpm_deploy.backends.tensorrt.settings import CAPABILITIES, COMPATIBILITIES, MAX_LEVEL, MIB, TENSORRT, Range
from ddpm_deploy.bundle import Bundle, ModelFile, read_bundle
from ddpm_deploy.bundle.manifest import PORTABLE
from ddpm_deploy.cli import make_parser, run_command, some_path, words
from ddpm_deploy.errors import BundleError

DEFAULT = BuildSettings()


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments; each is a parameter of `run`."""
    parser = make_parser("build", "Build TensorRT engines of a bundle's graphs into a cache, or say what is there.")
    add = parser.add_argument
    add("bundle_path", metavar="BUNDLE", nargs="?", type=some_path, help="bundle to build engines of")
    add("--target", choices=tuple(MODULES), default=TENSORRT, help="runtime; tensorrt-rtx builds without a GPU")
    add("--role", type=words, help="graphs, such as denoiser,step; all that the bundle has for TensorRT if not given")
    add("--precision", type=words, help="precisions, such as fp16,int8; all that there are if not given")
    add("--batch", type=_sizes, default="1", help="batch sizes to tune for, such as 1,4,8: the largest is the limit")
    add("--rows", type=_range, default=_joined(DEFAULT.rows),
        help="least, tuned for and most evaluations of a plan, for sampler graphs")  # fmt: skip
    add("--axis", type=_axis, action="append", metavar="NAME=LEAST,TUNED,MOST", help="sizes of another free axis")
    add("--optimization-level", type=int, help=f"0 to {MAX_LEVEL}: how long the builder may search")
    add("--workspace-mib", type=int, help="memory that a layer may use for itself, MiB; all of the GPU if not given")
    add("--hardware-compatibility", choices=COMPATIBILITIES, help="which other GPUs the engine runs on")
    add("--version-compatible", action="store_true", help="let later versions of TensorRT run the engine")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--strip-weights", action="store_true", help="leave the weights out, to be put back on load")
    weights.add_argument("--refit", action="store_true", help="keep the weights replaceable")
    add("--timing-cache", action=argparse.BooleanOptionalAction, help="reuse timings of earlier builds")
    add("--compute-capability", type=words, metavar="CC,...",
        help=f"GPUs that a tensorrt-rtx engine is for, some of {','.join(CAPABILITIES)}")  # fmt: skip
    add("--digest", help="sha256:... that the bundle must have")
    add(
        "--cache",
        type=some_path,
        metavar="DIR",
        help=f"folder of engines; ${VARIABLE} or the user's cache if not given",
    )
    add("--wait", type=float, metavar="SECONDS", help="how long to wait for other builders; for ever if not given")
    add("--force", action="store_true", help="build although the engine is there")
    add("--list", action="store_true", help="show the engines in the cache, of BUNDLE if it is given")
    add("--dry-run", action="store_true", help="only say which engines are there, and why others are not")
    add("--verbose", action="store_true", help="show what the runtime logs")
    add("--quiet", action="store_true", help="show no progress bar")
    add("--json", action="store_true", help="print the result as JSON")
    return parser


def run(
    bundle_path: Path | None,
    target: str,
    role: Sequence[str] | None,
    precision: Sequence[str] | None,
    batch: tuple[int, ...],
    rows: Range,
    axis: Sequence[tuple[str, Range]] | None,
    optimization_level: int | None,
    workspace_mib: int | None,
    hardware_compatibility: str | None,
    version_compatible: bool,
    strip_weights: bool,
    refit: bool,
    timing_cache: bool | None,
    compute_capability: Sequence[str] | None,
    digest: str | None,
    cache: Path | None,
    wait: float | None,
    force: bool,
    list: bool,
    dry_run: bool,
    verbose: bool,
    quiet: bool,
    json: bool,
) -> int:
    """Build what is missing and print what there is."""
    logging.getLogger(LOG_NAME).setLevel(logging.DEBUG if verbose else logging.CRITICAL)  # else an error says it again
    settings = BuildSettings(
        batches=batch,
        rows=rows,
        axes=tuple(axis or ()),
        optimization_level=optimization_level,
        workspace_bytes=None if workspace_mib is None else workspace_mib * MIB,
        hardware_compatibility=hardware_compatibility,
        version_compatible=version_compatible,
        strip_weights=strip_weights,
        refit=refit,
        timing_cache=timing_cache,
        compute_capabilities=tuple(compute_capability or ()),
    )
    engines = EngineCache(cache)
    bundle = None if bundle_path is None else read_bundle(bundle_path, digest=digest)
    if list:
        return _show_list(engines, bundle, json)
    if bundle is None:
        raise ValueError("BUNDLE: got none, expected the bundle to build engines of, or --list")
    _check_outside(engines, bundle)
    job = Job(target, bundle, engines, settings)
    files = graph_files(bundle, role or (), precision or ())
    results = [job.examine(file) for file in files] if dry_run else job.build_all(files, force, wait, quiet)
    _show(results, engines, json)
    return 0


class Job:
    """Engines of one bundle, for one runtime and one choice of settings."""

    def __init__(self, target: str, bundle: Bundle, cache: EngineCache, settings: BuildSettings) -> None:
        self._adapter = open_adapter(target)
        self._bundle, self._cache, self._settings = bundle, cache, settings
        self._gpu = find_gpu()

    def examine(self, file: ModelFile) -> dict[str, Any]:
        """Whether the engine of a graph is there, and why not."""
        key = self._key(file)
        problems: list[str] = []
        record = usable(self._cache, key, problems.append)
        if record is not None:
            return _result(self._cache, key, record, state="hit")
        return _result(self._cache, key, None, state="miss", reason="; ".join(problems) or self._cache.explain(key))

    def build_all(
        self, files: Sequence[ModelFile], force: bool, wait_s: float | None, quiet: bool
    ) -> list[dict[str, Any]]:
        """Build those that are missing, one after the other."""
        results = []
        keys = [self._key(file) for file in files]
        with tqdm(total=len(files), unit="engine", disable=True if quiet else None) as bar:
            for file, key in zip(files, keys, strict=True):
                bar.set_description(f"{file.role} {file.precision}")
                results.append(self._ensure(file, key, force, wait_s, bar.write))
                bar.update()
        return results

    def _key(self, file: ModelFile) -> EngineKey:
        return engine_key(self._adapter, self._bundle, file, self._settings, self._gpu)

    def _ensure(
        self, file: ModelFile, key: EngineKey, force: bool, wait_s: float | None, write: Callable[..., None]
    ) -> dict[str, Any]:
        build = make_builder(self._adapter, self._bundle, file, key, self._cache)
        record, built = ensure_engine(
            self._cache, key, build, force=force, timeout_s=wait_s, tell=lambda text: write(text, file=sys.stderr)
        )
        return _result(self._cache, key, record, state="built" if built else "hit")


def graph_files(bundle: Bundle, roles: Sequence[str], precisions: Sequence[str]) -> list[ModelFile]:
    """The graphs to build engines of, those made for TensorRT before those that every runtime reads.

    Nothing asked: all that are made for TensorRT, else the portable float32 denoiser. Raises BundleError for what the
    bundle does not have.
    """
    made = [file for file in bundle.manifest.files if file.target == TENSORRT]
    if not roles and not precisions:
        return made or [bundle.file("denoiser", "fp32", TENSORRT)]
    there = [*made, *(file for file in bundle.manifest.files if file.target == PORTABLE)]
    pairs = dict.fromkeys((file.role, file.precision) for file in there)
    wanted = [
        (role, precision)
        for role, precision in pairs
        if (not roles or role in roles) and (not precisions or precision in precisions)
    ]
    _require_found("role", roles, [role for role, _ in wanted], pairs)
    _require_found("precision", precisions, [precision for _, precision in wanted], pairs)
    return [bundle.file(role, precision, TENSORRT) for role, precision in wanted]


def _require_found(what: str, asked: Sequence[str], found: Sequence[str], there: dict[tuple[str, str], None]) -> None:
    for name in asked:
        if name not in found:
            have = ", ".join(" ".join(pair) for pair in there) or "nothing"
            raise BundleError(f"{what}: got {name!r}, but the bundle has {have} for TensorRT; export it with {name}")


def _check_outside(cache: EngineCache, bundle: Bundle) -> None:
    if cache.root.resolve().is_relative_to(bundle.root.resolve()):
        raise ValueError(
            f"cache: got {cache.root}, which is inside the bundle; engines belong outside, give another folder"
        )


def _result(cache: EngineCache, key: EngineKey, record: EngineRecord | None, **more: Any) -> dict[str, Any]:
    found = {} if record is None else json.loads(record.to_json()) | {"path": str(cache.root / record.path)}
    return {"role": key.role, "precision": key.precision, "target": key.runtime, **more, **found}


def _show(results: Sequence[dict[str, Any]], cache: EngineCache, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"cache": str(cache.root), "engines": results}, indent=1))
        return
    for result in results:
        print(f"{result['role']:<10}{result['precision']:<6}{result['state']:<6} {_detail(result)}")


def _detail(result: dict[str, Any]) -> str:
    if "engine" not in result:
        return str(result["reason"])
    size = f"{result['engine']['size_bytes'] / 2**20:.2f} MiB"
    how = "" if result["state"] == "hit" else f" in {result['seconds']:.1f} s"
    looked = "layers and engine" if result["inspected"] else "layers"
    return f"{size}{how}, {looked} verified: {_types(result['layers'])}  {result['path']}"


def _types(layers: dict[str, dict[str, int]]) -> str:
    """What convolutions and matrix products compute in: "convolution 2 fp32, 31 fp16"."""
    kinds = [kind for kind in ("convolution", "deconvolution", "matrix_multiply") if kind in layers]
    texts = [f"{kind} {', '.join(f'{count} {name}' for name, count in layers[kind].items())}" for kind in kinds]
    return "; ".join(texts).replace("_", " ") or "no convolutions"


def _show_list(cache: EngineCache, bundle: Bundle | None, as_json: bool) -> int:
    records = [record for record in cache.records() if bundle is None or record.key.bundle_digest == bundle.digest]
    results = [_result(cache, record.key, record, state="hit") for record in records]
    if not as_json:
        print(f"{cache.root}: {len(results)} engine{'' if len(results) == 1 else 's'}")
        for record in records:
            batches = ",".join(map(str, record.key.settings.batches))
            print(f"  {record.key.title}, batch {batches}, {record.size_bytes / 2**20:.2f} MiB  {record.path}")
    else:
        _show(results, cache, as_json)
    return 0


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in words(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected whole numbers such as 1,4,8") from None


def _range(text: str) -> Range:
    sizes = _sizes(text)
    if len(sizes) != 3:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected three whole numbers: least, tuned for, most")
    return sizes[0], sizes[1], sizes[2]


def _axis(text: str) -> tuple[str, Range]:
    name, _, sizes = text.partition("=")
    return name, _range(sizes)


def _joined(sizes: Sequence[int]) -> str:
    return ",".join(map(str, sizes))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_command(build_parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
