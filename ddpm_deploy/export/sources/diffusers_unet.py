"""A `UNet2DModel` from its configuration and weights: as our U-Net, or through diffusers where that cannot do it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_deploy.errors import ExportError
from ddpm_deploy.model import UNet, UNetConfig
from ddpm_deploy.model.diffusers_weights import read_config, read_weights
from ddpm_deploy.schedule import NoiseSchedule

INSTALL = 'pip install "diffusers>=0.35"'
BAD_CONFIG = (ValueError, TypeError, KeyError, AttributeError, NotImplementedError)
OLD_NAMES = (
    (r"\.query\.", ".to_q."),
    (r"\.key\.", ".to_k."),
    (r"\.value\.", ".to_v."),
    (r"\.proj_attn\.", ".to_out.0."),
    (r"\.Conv2d_0\.", ".conv."),
)


@dataclass(frozen=True)
class Rebuilt:
    """A network with its weights, in eval mode. size_multiple: height and width must be multiples of it."""

    network: nn.Module
    spec: dict[str, Any] | None
    size_multiple: int
    provenance: dict[str, Any]


class DiffusersUNet(nn.Module):
    """diffusers' U-Net under our contract. integer_time: whether it looks t up in a table, so that t is rounded."""

    def __init__(self, network: nn.Module, integer_time: bool) -> None:
        super().__init__()
        self.network = network
        self.integer_time = integer_time

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """x: (B, C, H, W). t: (B,) float. labels: as the configuration wants them."""
        time = t.round().long() if self.integer_time else t
        out: Tensor = self.network(x, time, class_labels=labels, return_dict=False)[0]
        return out


class FlowTime(nn.Module):
    """Gives a flow-matching network `T * sigma(t)` as its time, as diffusers does.

    Between two timesteps sigma follows `NoiseSchedule.at`.
    """

    alpha: Tensor
    sigma: Tensor

    def __init__(self, network: nn.Module, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("alpha", torch.tensor(schedule.alpha, dtype=torch.float32))
        self.register_buffer("sigma", torch.tensor(schedule.sigma, dtype=torch.float32))

    def forward(self, x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        """x: (B, *S). t: (B,) float."""
        T = len(self.sigma)
        low = t.floor().clamp(0, T - 1).long()
        high = (low + 1).clamp(max=T - 1)
        w = t - low
        straight = torch.lerp(self.sigma[low], self.sigma[high], w)
        odds = (self.sigma[low] / self.alpha[low]) ** (1 - w) * (self.sigma[high] / self.alpha[high]) ** w
        smooth = (w > 0) & (self.alpha[high] > 0)
        sigma = torch.where(smooth, odds / (1 + odds), straight)
        out: Tensor = self.network(x, T * sigma, **conditions)
        return out


def rebuild(config: Mapping[str, Any], state: Mapping[str, Tensor], where: Path) -> Rebuilt:
    """The network that a config.json and a state dict describe; ExportError where neither we nor diffusers can."""
    try:
        own = read_config(config)
    except BAD_CONFIG as error:
        return _through_diffusers(config, state, where, f"{error}")
    network = _own(own, state, where)
    return Rebuilt(network, network.spec(), own.size_multiple, {"network": "ddpm-deploy UNet"})


def _own(config: UNetConfig, state: Mapping[str, Tensor], where: Path) -> UNet:
    if len(config.block_out_channels) * config.layers_per_block > len(state):
        raise ExportError(f"{where}: layers_per_block: got more layers than the weights have tensors")
    try:
        weights = read_weights(state)
    except (KeyError, RuntimeError, IndexError) as error:
        raise ExportError(f"{where}: the weights are of another model ({error})") from None
    try:
        with torch.device("meta"):
            empty = UNet(config)
    except (RuntimeError, ZeroDivisionError) as error:
        raise ExportError(f"{where}: describes no network that could be built: {error}") from None
    check_shapes(empty, weights, where)
    network = UNet(config)
    network.load_state_dict(weights)
    return network.eval()


def _through_diffusers(config: Mapping[str, Any], state: Mapping[str, Tensor], where: Path, reason: str) -> Rebuilt:
    if config.get("time_embedding_type") == "fourier":
        raise ExportError(f"{where}: time_embedding_type: got 'fourier', a network of sigmas instead of timesteps")
    try:
        from diffusers import UNet2DModel
    except ImportError:
        raise ExportError(f"{where}: {reason}; diffusers can build it: {INSTALL}") from None
    known = inspect.signature(UNet2DModel.__init__).parameters
    options = {name: value for name, value in config.items() if not name.startswith("_")}
    for name, value in options.items():
        if name not in known:
            raise ExportError(f"{where}: {name}: is no option of the installed diffusers' UNet2DModel")
        if not _is_like(value, known[name].default):
            raise ExportError(f"{where}: {name}: got {value!r}, expected something like {known[name].default!r}")
    options.setdefault("attention_head_dim", None)  # older configurations mean one head
    weights = {_modern(name): _as_linear(name, tensor) for name, tensor in state.items()}
    network = _build(UNet2DModel, options, weights, where)
    integer = options.get("time_embedding_type") == "learned"
    provenance = {"network": "diffusers UNet2DModel"} | ({"integer_timestep": True} if integer else {})
    return Rebuilt(DiffusersUNet(network, integer).eval(), None, _size_multiple(options), provenance)


def _is_like(value: Any, default: Any) -> bool:
    """Whether an option is of the kind of its default; diffusers itself would notice only when it runs."""
    if value is None or default is None:
        return True
    if isinstance(default, bool | str):
        return isinstance(value, type(default))
    kinds = (list, tuple) if isinstance(default, tuple) else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool)


def _build(kind: Any, options: Mapping[str, Any], weights: Mapping[str, Tensor], where: Path) -> nn.Module:
    blocks = options.get("block_out_channels", ())
    layers = options.get("layers_per_block", 2)
    if not isinstance(layers, int) or not isinstance(blocks, list | tuple) or len(blocks) * layers > len(weights):
        raise ExportError(f"{where}: layers_per_block: got {layers!r}, more layers than the weights have tensors")
    try:
        with torch.device("meta"):
            empty = kind(**options)
    except Exception as error:  # whatever its code runs into
        raise ExportError(f"{where}: diffusers cannot build it: {error}") from None
    check_shapes(empty, weights, where)
    network: nn.Module = kind(**options)
    network.load_state_dict(weights)
    return network


def check_shapes(network: nn.Module, weights: Mapping[str, Tensor], where: Path | str) -> None:
    """Compare names and shapes before any memory is taken for them; ExportError names the first difference."""
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    for name, shape in expected.items():
        if name not in weights:
            raise ExportError(f"{where}: the weights lack {name} of shape {shape}; they are of another model")
        if tuple(weights[name].shape) != shape:
            got = tuple(weights[name].shape)
            raise ExportError(f"{where}: {name}: the weights have shape {got}, expected {shape}")
    extra = sorted(set(weights) - set(expected))
    if extra:
        raise ExportError(f"{where}: the weights hold {extra[0]}, which the model has not; they are of another model")


def _size_multiple(options: Mapping[str, Any]) -> int:
    return int(2 ** (len(options.get("block_out_channels", (0,) * 4)) - 1))


def _modern(name: str) -> str:
    for pattern, replacement in OLD_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _as_linear(name: str, tensor: Tensor) -> Tensor:
    """Projections of attention were 1x1 convolutions once."""
    old = re.search(r"attentions\.\d+\.(query|key|value|proj_attn|to_[qkv]|to_out\.0)\.weight$", name)
    return tensor[:, :, 0, 0] if old and tensor.ndim == 4 else tensor
