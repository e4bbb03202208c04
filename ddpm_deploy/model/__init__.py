"""The reference networks, in plain torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ddpm_deploy.model.unet_config import UNetConfig

if TYPE_CHECKING:
    from ddpm_deploy.model.networks import NETWORKS, build_network
    from ddpm_deploy.model.policy import EncoderConfig, ObservationEncoder, PolicyConfig, PolicyNet
    from ddpm_deploy.model.small import PointConfig, PointNet, SignalConfig, SignalNet
    from ddpm_deploy.model.text import TextConfig, TextEncoder, TextToImage
    from ddpm_deploy.model.unet import UNet

__all__ = [
    "NETWORKS",
    "EncoderConfig",
    "ObservationEncoder",
    "PointConfig",
    "PointNet",
    "PolicyConfig",
    "PolicyNet",
    "SignalConfig",
    "SignalNet",
    "TextConfig",
    "TextEncoder",
    "TextToImage",
    "UNet",
    "UNetConfig",
    "build_network",
]

MODULES = {
    "NETWORKS": "networks",
    "EncoderConfig": "policy",
    "ObservationEncoder": "policy",
    "PointConfig": "small",
    "PointNet": "small",
    "PolicyConfig": "policy",
    "PolicyNet": "policy",
    "SignalConfig": "small",
    "SignalNet": "small",
    "TextConfig": "text",
    "TextEncoder": "text",
    "TextToImage": "text",
    "UNet": "unet",
    "build_network": "networks",
}


def __getattr__(name: str) -> Any:
    """Import torch, which takes seconds, only for those who need more than a configuration."""
    if name in MODULES:
        return getattr(importlib.import_module(f"{__name__}.{MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
