"""Making a plan the one that a bundle draws with when it is told nothing: in its manifest and in its graphs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ddpm_deploy.bundle import METADATA_KEY, Bundle, Defaults, Manifest, ModelFile, to_metadata, write_bundle
from ddpm_deploy.bundle.manifest import MANIFEST_NAME
from ddpm_deploy.bundle.read import ASSETS
from ddpm_deploy.bundle.write import check_target
from ddpm_deploy.errors import BundleError
from ddpm_deploy.job import plan_settings
from ddpm_deploy.plan import Plan
from ddpm_deploy.plan.feeds import no_guidance, no_noise, plan_tables
from ddpm_deploy.solvers import make_plan


def check_defaults_of(bundle: Bundle) -> None:
    """Raise BundleError where `write_defaults` could not write, or should not: for long work, before it starts."""
    if Path(bundle.root).resolve().is_relative_to(ASSETS.resolve()):
        raise BundleError(f"{bundle.root}: is a model of this package; copy the folder and give the copy")
    check_target(bundle.root)


def write_defaults(bundle: Bundle, defaults: Defaults) -> Bundle:
    """Rewrite a bundle folder, atomically, with other defaults; raises BundleError.

    The `sampler` graphs for ONNX Runtime hold the tables of the default plan, so these change too, and the manifest
    that travels inside each ONNX file. Weights and what was measured at export stay as they are; the digest changes.
    """
    if not (bundle.root / MANIFEST_NAME).is_file():
        raise BundleError(f"{bundle.root}: a lone ONNX file holds no defaults for a folder; give the whole bundle")
    manifest = replace(bundle.manifest, defaults=defaults)
    plan = make_plan(schedule=manifest.schedule, **plan_settings(manifest, None, None, None, None, {}))
    contents = {file.path: bundle.open_bytes(file) for file in bundle.manifest.all_files}
    for file in manifest.files:
        if file.path.endswith(".onnx"):
            contents[file.path] = _rewritten(contents[file.path], manifest, file, plan)
    return write_bundle(os.path.realpath(bundle.root), manifest, contents)


def _rewritten(model: bytes, manifest: Manifest, file: ModelFile, plan: Plan) -> bytes:
    import onnx

    proto = onnx.load_from_string(model)
    inputs, initializers = {spec.name for spec in file.inputs}, proto.graph.initializer
    kept = [value for value in initializers if value.name not in inputs]
    if file.role == "sampler" and len(kept) < len(initializers):
        tables = _tables(manifest, file, plan)
        del initializers[:]
        initializers.extend([*kept, *(onnx.numpy_helper.from_array(value, name) for name, value in tables.items())])
    for entry in proto.metadata_props:
        if entry.key == METADATA_KEY:
            entry.value = to_metadata(manifest, file)
    return bytes(proto.SerializeToString())


def _tables(manifest: Manifest, file: ModelFile, plan: Plan) -> Mapping[str, Any]:
    """The default of each input that has one; a plan that draws noise leaves `noise` to be given."""
    shapes = {spec.name: spec.shape for spec in file.inputs}
    size = shapes["update"][1]
    values = plan_tables(
        plan, learned_variance="log_variance" in shapes, state_size=size if isinstance(size, int) else None
    )
    if plan.is_deterministic:
        values["noise"] = no_noise(plan, len(manifest.sample_shape))
    if "guidance" in shapes:
        values["guidance"] = no_guidance(plan)
    return values
