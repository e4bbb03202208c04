"""Export a trained network as a bundle: ONNX graph, torch weights, reference values, parity figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ddpm_deploy.export.options import Options

if TYPE_CHECKING:
    from ddpm_deploy.export.api import export_module, export_run, export_source

__all__ = ["Options", "export_module", "export_run", "export_source"]


def __getattr__(name: str) -> Any:
    """Import torch, which takes seconds, only for those who export: not for `--help`."""
    if name in __all__:
        from ddpm_deploy.export import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
