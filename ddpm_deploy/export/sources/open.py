"""Which kind of source a text names."""

from __future__ import annotations

from pathlib import Path

from ddpm_deploy.errors import ExportError
from ddpm_deploy.export.sources.base import Settings, Source

RUN_NAME = "run.json"
CHECKPOINTS = (".pt", ".pth", ".ckpt", ".safetensors")
LOOKED_FOR = (
    f"a run of the trainer (a folder with {RUN_NAME}), a diffusers folder (model_index.json, config.json or "
    "unet/config.json), an .onnx file, a lucidrains checkpoint (.pt or .safetensors), package.module:factory or "
    "path/to/file.py:factory"
)


def open_source(where: str, settings: Settings | None = None) -> Source:
    """Read a model from a folder, a file or a factory; nothing is downloaded.

    Raises ExportError that says what was looked for, what is missing, or which setting is of no use there.
    """
    settings = settings or Settings()
    path = Path(where)
    if path.is_dir():
        return _open_folder(path, settings)
    if path.is_file():
        return _open_file(path, settings)
    from ddpm_deploy.export.sources.module import is_reference, read_module

    if is_reference(where):
        return read_module(where, settings)
    raise ExportError(f"{where}: there is no such file or folder; expected {LOOKED_FOR}")


def _open_folder(path: Path, settings: Settings) -> Source:
    from ddpm_deploy.export.sources.diffusers import is_diffusers, read_diffusers
    from ddpm_deploy.export.sources.run import read_run

    if (path / RUN_NAME).is_file():
        return read_run(path, settings)
    if is_diffusers(path):
        return read_diffusers(path, settings)
    raise ExportError(f"{path}: holds neither; expected {LOOKED_FOR}")


def _open_file(path: Path, settings: Settings) -> Source:
    if path.suffix == ".onnx":
        from ddpm_deploy.export.sources.onnx_file import read_onnx

        return read_onnx(path, settings)
    if path.suffix in CHECKPOINTS:
        from ddpm_deploy.export.sources.lucidrains import read_lucidrains

        return read_lucidrains(path, settings)
    raise ExportError(f"{path}: is of no known kind; expected {LOOKED_FOR}")
