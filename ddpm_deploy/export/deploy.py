"""What follows a bundle where a target asks for it: TensorRT engines, a Triton model repository, a page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ddpm_deploy.bundle import Bundle, ModelFile
from ddpm_deploy.bundle.manifest import PORTABLE
from ddpm_deploy.errors import BackendUnavailable
from ddpm_deploy.export.options import Options
from ddpm_deploy.export.targets import ENGINE_TARGETS, TRITON, WEB

SERVED = (PORTABLE, "onnxruntime-cpu")
VIEW = "python -m http.server --bind 127.0.0.1 --directory"
MAX_NAME = 100  # so that the folder's name, with role and precision, is one that Triton's writer takes


@dataclass(frozen=True)
class Places:
    """Where things go. web_runtime: see `web.write_page`."""

    triton: Path
    web: Path
    web_runtime: Mapping[str, bytes] | None = None

    @classmethod
    def beside(cls, bundle: Path) -> Places:
        """BUNDLE.triton and BUNDLE.web."""
        triton, web = (bundle.with_name(f"{bundle.name}.{target}") for target in (TRITON, WEB))
        return cls(triton, web)


def deploy(bundle: Bundle, options: Options, places: Places) -> Iterator[str]:
    """Build and write what the targets ask for; yields a line about each thing, also about what cannot be had here."""
    for runtime in ENGINE_TARGETS:
        if runtime in options.targets:
            yield from _engines(bundle, options, runtime)
    if TRITON in options.targets:
        yield from _repository(bundle, places.triton)
    if WEB in options.targets:
        yield from page(bundle, places.web, places.web_runtime)


def page(
    bundle: Bundle, out: Path, runtime: Mapping[str, bytes] | None = None, precision: str = "fp32"
) -> Iterator[str]:
    """Write the page of a bundle; yields where it is, and how to look at it."""
    from ddpm_deploy.export.web import write_page

    yield f"page: {write_page(bundle, out, precision=precision, runtime=runtime)}"
    yield f"look at it: {VIEW} {out}"


def _engines(bundle: Bundle, options: Options, runtime: str) -> Iterator[str]:
    from ddpm_deploy.backends.tensorrt import BuildSettings, EngineCache
    from ddpm_deploy.build import Job, graph_files

    settings = BuildSettings(batches=tuple(sorted(set(options.batches))), axes=_free_axes(bundle))
    try:
        job = Job(runtime, bundle, EngineCache(None), settings)
        built = job.build_all(graph_files(bundle, (), ()), force=False, wait_s=None, quiet=not options.progress)
    except BackendUnavailable as error:
        yield f"no engines were built: {error}"
        yield f"on the target machine: python -m ddpm_deploy.build BUNDLE --target {runtime}"
        return
    for result in built:
        yield f"{runtime} engine {result['role']} {result['precision']}: {result['state']}, {result['path']}"


def _free_axes(bundle: Bundle) -> tuple[tuple[str, tuple[int, int, int]], ...]:
    """From the smallest size of pictures to twice the trained one, where the size is free."""
    multiple = bundle.manifest.size_multiple
    if multiple is None:
        return ()
    return tuple((axis, (multiple, n, 2 * n)) for axis, n in zip("HW", bundle.manifest.sample_shape[1:], strict=True))


def _repository(bundle: Bundle, out: Path) -> Iterator[str]:
    from ddpm_deploy.export.triton import write_model_repository

    for file in bundle.manifest.files:
        if file.target in SERVED and file.role != "encoder":
            folder = write_model_repository(
                bundle, out, graph=file.role, precision=file.precision, target=file.target, name=_name(bundle, file)
            )
            yield f"Triton model: {folder}"


def _name(bundle: Bundle, file: ModelFile) -> str:
    plain = re.sub(r"[^A-Za-z0-9_]+", "_", bundle.manifest.model.name)[:MAX_NAME]
    return f"{plain}_{file.role}_{file.precision}"
