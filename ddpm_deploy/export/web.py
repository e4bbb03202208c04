"""A static page that draws from a bundle in the browser: the whole loop as one graph, run by onnxruntime-web."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from ddpm_deploy.bundle import Bundle, ModelFile
from ddpm_deploy.bundle.write import install_folder, write_remedy
from ddpm_deploy.encoder import TOKENS
from ddpm_deploy.errors import BundleError, ExportError
from ddpm_deploy.export.onnxruntime_web import runtime_files
from ddpm_deploy.export.sampler_graph import build_sampler
from ddpm_deploy.export.web_model import describe, label_condition, plans_json
from ddpm_deploy.images import is_picture
from ddpm_deploy.page import FOLDER, INDEX, page_files

TARGET = "onnxruntime-cpu"
STEPS = (1, 2, 4, 6, 8, 10, 12, 16, 20, 25, 50, 100)
MAX_N = 36
DESCRIPTION = f"{FOLDER}/model.json"
WRITER = {"written_by": "ddpm-deploy"}  # which replaces the folder as a whole


def write_page(
    bundle: Bundle,
    out: str | os.PathLike[str],
    *,
    precision: str = "fp32",
    steps: Sequence[int] = STEPS,
    runtime: Mapping[str, bytes] | None = None,
) -> Path:
    """Write the page into the folder `out`, to be served by anything that serves files; returns `out`.

    precision: of the sampler graph; where the bundle has none, it is built from the denoiser.
    steps: the choices that it offers, beside the model's default. runtime: what `onnxruntime_web.runtime_files` gives;
    None fetches it.
    Raises BundleError, ExportError for a bundle that a page cannot draw from, or where `out` is foreign.
    """
    _check_bundle(bundle)
    graphs = _graphs(bundle, precision)
    described = describe(bundle.manifest, steps, MAX_N)
    model = {**WRITER, **described, "bundle": bundle.root.name, "digest": bundle.digest}
    plans = {f"plan.{name}.json": plans_json(bundle.manifest, name, n) for name, n in model["solvers"].items()}
    files = {
        **page_files("browser"),
        DESCRIPTION: json.dumps(model, indent=1).encode(),
        **_inside({name: text.encode() for name, text in plans.items()}),
        **_inside(graphs),
        **_inside(runtime or runtime_files()),
    }
    try:
        install_folder(Path(os.path.realpath(out)), files, _check_replaceable)
    except OSError as error:
        raise ExportError(f"{out}: cannot be written: {error.strerror}; {write_remedy(error)}") from error
    return Path(out)


def _inside(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{FOLDER}/{name}": data for name, data in files.items()}


def _check_bundle(bundle: Bundle) -> None:
    manifest, label = bundle.manifest, label_condition(bundle.manifest)
    if not is_picture(manifest.sample_shape):
        raise ExportError(
            f"{bundle.root}: samples of shape {manifest.sample_shape} are no pictures, which a page shows"
        )
    given = {label.name} if label else set()
    if manifest.tokenizer is not None:
        encoder = bundle.file("encoder", "fp32")
        given |= {spec.name for spec in encoder.outputs}
        if [spec.name for spec in encoder.inputs] != [TOKENS]:
            names = ", ".join(spec.name for spec in encoder.inputs)
            raise ExportError(f"{bundle.root}: its encoder takes {names}, of which a page can give {TOKENS} alone")
    for condition in manifest.conditions:
        if condition.null is None and condition.name not in given:
            raise ExportError(
                f"{bundle.root}: {condition.name} has to be given, and a page can give one class or a prompt only; "
                "use the bundle from Python, or export a model that can do without"
            )


def _graphs(bundle: Bundle, precision: str) -> dict[str, bytes]:
    """The sampler, and the encoder where prompts are read."""
    graphs = {"sampler.onnx": _sampler(bundle, precision)}
    if bundle.manifest.tokenizer is not None:
        graphs["encoder.onnx"] = bundle.open_bytes(bundle.file("encoder", "fp32"))
    return graphs


def _sampler(bundle: Bundle, precision: str) -> bytes:
    """The whole loop, every table an input: onnxruntime-web lets no caller overrule a default."""
    try:
        file = bundle.file("sampler", precision, TARGET)
    except BundleError:  # there is none
        return _built(bundle, _whole(bundle.file("denoiser", precision, TARGET)))
    sampler = onnx.load_model_from_string(bundle.open_bytes(_whole(file)))
    taken = {value.name for value in sampler.graph.input}
    kept = [tensor for tensor in sampler.graph.initializer if tensor.name not in taken]
    del sampler.graph.initializer[:]
    sampler.graph.initializer.extend(kept)
    return bytes(sampler.SerializeToString())


def _built(bundle: Bundle, denoiser: ModelFile) -> bytes:
    """The sampler that an export would have written, for a bundle without."""
    manifest = bundle.manifest
    graph = build_sampler(
        onnx.load_model_from_string(bundle.open_bytes(denoiser)),
        inputs=denoiser.inputs,
        sample_shape=manifest.graph_shape,
        learned_variance=manifest.variance == "learned",
        target=TARGET,
        default_plan=None,
        nulls=manifest.nulls,
    )
    return bytes(graph.SerializeToString())


def _whole(file: ModelFile) -> ModelFile:
    """The file, unless its weights are in another."""
    if file.weights is not None:
        raise ExportError(f"{file.path}: its weights are in {file.weights}; export the model without --share-weights")
    return file


def _check_replaceable(target: Path) -> None:
    if not os.path.lexists(target):
        return
    if not target.is_dir() or (any(target.iterdir()) and not _is_ours(target / DESCRIPTION)):
        raise ExportError(f"{target}: was not written by this package, so it is not replaced; give another name")
    foreign = sorted({path.name for path in target.iterdir()} - {INDEX, FOLDER})
    if foreign:
        raise ExportError(f"{target}: holds {foreign[0]!r}, which is not of this package; move it away")


def _is_ours(description: Path) -> bool:
    try:
        return json.loads(description.read_text()).items() >= WRITER.items()
    except (OSError, ValueError, AttributeError):
        return False
