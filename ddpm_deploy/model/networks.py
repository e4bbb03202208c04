"""The networks by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ddpm_deploy.model.policy import PolicyNet
from ddpm_deploy.model.small import PointNet, SignalNet
from ddpm_deploy.model.text import TextToImage
from ddpm_deploy.model.unet import UNet

NETWORKS: dict[str, Any] = {
    "unet": UNet,
    "mlp": PointNet,
    "conv1d": SignalNet,
    "policy": PolicyNet,
    "text_to_image": TextToImage,
}


def build_network(spec: Mapping[str, Any]) -> nn.Module:
    """Build a network, with fresh weights, from what its `spec()` returned."""
    if set(spec) != {"kind", "config"}:
        raise ValueError(f"network: got keys {sorted(spec)}, expected 'config' and 'kind'")
    if spec["kind"] not in NETWORKS:
        raise ValueError(f"network kind: got {spec['kind']!r}, expected one of {', '.join(NETWORKS)}")
    network: nn.Module = NETWORKS[spec["kind"]].from_config(spec["config"])
    return network
