"""Where a model to export may come from: our own runs, diffusers folders, any module, ONNX files, lucidrains."""

from ddpm_deploy.export.sources.base import Settings, Source
from ddpm_deploy.export.sources.open import open_source

__all__ = ["Settings", "Source", "open_source"]
