"""The arguments of lucidrains' `Unet`, told from the shapes of its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ddpm_deploy.errors import ExportError

UNET_OPTIONS = ("sinusoidal_pos_emb_theta", "attn_dim_head")  # what no shape tells; the latter in one dimension only
DEFAULT_DIM_HEAD = 32


def infer_arguments(weights: Mapping[str, Tensor], options: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The arguments of `Unet` (4-D weights) or `Unet1D` (3-D). options: some of `UNET_OPTIONS`."""
    unknown = sorted(set(options) - set(UNET_OPTIONS))
    if unknown:
        raise ExportError(
            f"factory_options: {unknown[0]}: the weights tell it; only {', '.join(UNET_OPTIONS)} may be said"
        )
    flat = weights["init_conv.weight"].ndim == 3
    try:
        attention = _attention_1d(weights, options) if flat else _attention_2d(weights, options)
        return {**_body(weights), **_time(weights), **attention, **options}
    except (KeyError, IndexError, ValueError) as error:
        raise ExportError(f"{path}: cannot tell the U-Net's arguments from its weights: {error}; {_remedy()}") from None


def list_differences(network: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Key by key where the weights do not fit: missing, of another shape, or too many."""
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    got = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    return [
        f"{name}: got {got.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}"
        for name in sorted(expected.keys() | got.keys())
        if got.get(name) != expected.get(name)
    ]


def _remedy() -> str:
    return "a checkpoint of an older release needs a module of your own (package.module:factory)"


def _body(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    init_dim, taken = weights["init_conv.weight"].shape[:2]
    given = weights["final_conv.weight"].shape[0]
    if taken not in (given, 2 * given) and given != 2 * taken:
        raise ValueError(f"final_conv gives {given} channels for {taken} of init_conv, which no known objective has")
    dim, rest = divmod(weights["time_mlp.3.weight"].shape[0], 4)
    widths = [_resample(weights, level).shape[0] for level in range(_levels(weights))]
    if rest or not dim or any(width % dim for width in widths):
        raise ValueError(f"widths {widths} are no multiples of dim {dim}")
    return {
        "dim": dim,
        "init_dim": init_dim,
        "dim_mults": tuple(width // dim for width in widths),
        "channels": min(taken, given),
        "self_condition": taken == 2 * given,
        "learned_variance": given == 2 * taken,
    }


def _time(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    learned = weights.get("time_mlp.0.weights")
    if learned is None:
        return {}
    return {"learned_sinusoidal_cond": True, "learned_sinusoidal_dim": 2 * len(learned)}


def _levels(weights: Mapping[str, Tensor]) -> int:
    levels = {int(match[1]) for name in weights if (match := re.match(r"downs\.(\d{1,3})\.", name))}
    if levels != set(range(len(levels))) or not levels:
        raise ValueError(f"downs: got levels {sorted(levels)}, expected 0, 1, ...")
    return len(levels)


def _resample(weights: Mapping[str, Tensor], level: int) -> Tensor:
    """The convolution to the next level; the last one keeps the size and stands without a rearrangement before it."""
    name = f"downs.{level}.3"
    return weights[f"{name}.1.weight"] if f"{name}.1.weight" in weights else weights[f"{name}.weight"]


def _attention_2d(weights: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    """Per level: whether it is full or linear, its heads and their width, from the memory of keys and values."""
    if "attn_dim_head" in options:
        raise ValueError("attn_dim_head: the weights tell it in two dimensions")
    full, heads, widths = [], [], []
    for level in range(_levels(weights)):
        name = f"downs.{level}.2"
        full.append(f"{name}.to_out.weight" in weights)
        memory = weights[f"{name}.mem_kv"].shape  # full (2, heads, n, width), linear (2, heads, width, n)
        heads.append(int(memory[1]))
        widths.append(int(memory[3] if full[-1] else memory[2]))
    return {"full_attn": tuple(full), "attn_heads": tuple(heads), "attn_dim_head": tuple(widths)}


def _attention_1d(weights: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    """Only the product of heads and width is in the shapes."""
    width = options.get("attn_dim_head", DEFAULT_DIM_HEAD)
    heads, rest = divmod(weights["mid_attn.fn.fn.to_qkv.weight"].shape[0], 3 * width)
    if rest or not heads:
        raise ValueError(f"mid_attn: is no multiple of attn_dim_head {width}; give attn_dim_head in factory_options")
    return {"attn_heads": heads, "attn_dim_head": width}
