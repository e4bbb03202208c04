"""diffusers' `UNet2DModel`, read and written: its configuration and its weights, without diffusers itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ddpm_deploy.model.unet_config import UNetConfig

ATTENDS = {"DownBlock2D": False, "AttnDownBlock2D": True, "UpBlock2D": False, "AttnUpBlock2D": True}

# What the U-Net here does; a configuration that asks for anything else is refused.
REQUIRED: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1, None),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default",),
    "attn_norm_num_groups": (None,),
    "class_embed_type": (None,),
}
READ = [
    "in_channels",
    "out_channels",
    "block_out_channels",
    "layers_per_block",
    "down_block_types",
    "up_block_types",
    "add_attention",
    "attention_head_dim",
    "dropout",
    "norm_num_groups",
    "norm_eps",
    "flip_sin_to_cos",
    "freq_shift",
    "downsample_padding",
    "num_class_embeds",
]
IGNORED = ("sample_size", "num_train_timesteps")  # of no effect in a model with positional time embedding


def read_config(config: Mapping[str, Any]) -> UNetConfig:
    """Translate the `config.json` of a diffusers `UNet2DModel`; what cannot be represented is refused.

    A missing `attention_head_dim` means one head, as it did when such files were written. Raises ValueError that names
    the option.
    """
    for name, value in config.items():
        if name in REQUIRED and value not in REQUIRED[name]:
            raise ValueError(f"{name}: got {value!r}, expected {REQUIRED[name][0]!r}; this U-Net has no other form")
        if name not in REQUIRED and name not in READ and name not in IGNORED and not name.startswith("_"):
            raise ValueError(f"{name}: got an option that UNet2DModel is not known to have")
    for name in ("block_out_channels", "down_block_types", "up_block_types"):
        if not isinstance(config.get(name), list | tuple):
            raise ValueError(f"{name}: got {config.get(name)!r}, expected one value for each level")
    members = {
        "in_channels": config.get("in_channels", 3),
        "out_channels": config.get("out_channels", 3),
        "block_out_channels": list(config["block_out_channels"]),
        "layers_per_block": config.get("layers_per_block", 2),
        "down_attention": _attention(config["down_block_types"]),
        "up_attention": _attention(config["up_block_types"]),
        "middle_attention": config.get("add_attention", True),
        "attention_head_dim": config.get("attention_head_dim"),
        "dropout": config.get("dropout", 0.0),
        "norm_groups": config.get("norm_num_groups", 32),
        "norm_eps": config.get("norm_eps", 1e-5),
        "flip_sin_to_cos": config.get("flip_sin_to_cos", True),
        "freq_shift": config.get("freq_shift", 0),
        "downsample_padding": config.get("downsample_padding", 1),
        "num_classes": config.get("num_class_embeds"),
    }
    return UNetConfig.from_dict(members)


def write_config(config: UNetConfig, sample_size: Sequence[int]) -> dict[str, Any]:
    """The options of the `UNet2DModel` that is the same network; `read_config` reads them back.

    sample_size: (H, W) of the pictures. Raises ValueError for what `UNet2DModel` has no option for.
    """
    if config.time_scale != 1:
        raise ValueError(f"time_scale: got {config.time_scale}, expected 1; UNet2DModel takes the time as it is")
    return {
        "sample_size": tuple(sample_size),
        "in_channels": config.in_channels,
        "out_channels": config.out_channels or config.in_channels,
        "block_out_channels": config.block_out_channels,
        "layers_per_block": config.layers_per_block,
        "down_block_types": tuple("AttnDownBlock2D" if attends else "DownBlock2D" for attends in config.down_attention),
        "up_block_types": tuple("AttnUpBlock2D" if attends else "UpBlock2D" for attends in config.up_attention),
        "add_attention": config.middle_attention,
        "attention_head_dim": config.attention_head_dim,
        "dropout": config.dropout,
        "norm_num_groups": config.norm_groups,
        "norm_eps": config.norm_eps,
        "flip_sin_to_cos": config.flip_sin_to_cos,
        "freq_shift": config.freq_shift,
        "downsample_padding": config.downsample_padding,
        "num_class_embeds": config.label_count,
    }


def _attention(block_types: Sequence[str]) -> tuple[bool, ...]:
    for name in block_types:
        if not isinstance(name, str) or name not in ATTENDS:
            raise ValueError(f"block type: got {name!r}, expected one of {', '.join(ATTENDS)}")
    return tuple(ATTENDS[name] for name in block_types)


RENAMES = (
    (r"^time_embedding\.linear_1\.", "time.linear_in."),
    (r"^time_embedding\.linear_2\.", "time.linear_out."),
    (r"^class_embedding\.", "label."),
    (r"^conv_norm_out\.", "norm_out."),
    (r"^(down|up)_blocks\.(\d+)\.resnets\.(\d+)\.", r"\1.\2.blocks.\3."),
    (r"^(down|up)_blocks\.(\d+)\.attentions\.(\d+)\.", r"\1.\2.attentions.\3."),
    (r"^(down|up)_blocks\.(\d+)\.(?:down|up)samplers\.0\.(?:conv|Conv2d_0)\.", r"\1.\2.resample.conv."),
    (r"^mid_block\.resnets\.0\.", "middle.block_in."),
    (r"^mid_block\.resnets\.1\.", "middle.block_out."),
    (r"^mid_block\.attentions\.0\.", "middle.attention."),
    (r"\.norm1\.", ".norm_in."),
    (r"\.norm2\.", ".norm_out."),
    (r"\.conv1\.", ".conv_in."),
    (r"\.conv2\.", ".conv_out."),
    (r"\.time_emb_proj\.", ".time."),
    (r"\.conv_shortcut\.", ".shortcut."),
    (r"\.group_norm\.", ".norm."),
    (r"\.(?:to_out\.0|proj_attn)\.", ".out."),
    (r"\.(?:to_q|query)\.", ".q."),
    (r"\.(?:to_k|key)\.", ".k."),
    (r"\.(?:to_v|value)\.", ".v."),
)
PART = re.compile(r"\.([qkv])\.(weight|bias)$")


def read_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a `UNet2DModel` state dict, old attention names included, for `UNet.load_state_dict`.

    Query, key and value are stacked into the one convolution that `Attention` has.
    """
    renamed = {_rename(name): tensor for name, tensor in state.items()}
    weights: dict[str, Tensor] = {}
    for name, tensor in renamed.items():
        part = PART.search(name)
        if part is None:
            weights[name] = _as_conv(tensor) if _attends(name) else tensor
        elif part[1] == "q":
            stem, kind = name[: part.start()], part[2]
            parts = [_as_conv(renamed[f"{stem}.{letter}.{kind}"]) for letter in "qkv"]
            weights[f"{stem}.qkv.{kind}"] = torch.cat(parts)
    return weights


def write_weights(weights: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The inverse of `read_weights`: the tensors of a `UNet` under the `names` of a `UNet2DModel`'s state dict.

    Query, key and value are views of the stacked convolution. Raises KeyError for a name that the weights do not have.
    """
    return {name: _written(weights, _rename(name)) for name in names}


def _written(weights: Mapping[str, Tensor], name: str) -> Tensor:
    part = PART.search(name)
    if part is None:
        tensor = weights[name]
    else:
        tensor = weights[f"{name[: part.start()]}.qkv.{part[2]}"].chunk(3)["qkv".index(part[1])]
    return tensor[:, :, 0, 0] if tensor.ndim == 4 and _attends(name) else tensor


def _attends(name: str) -> bool:
    return ".attentions." in name or ".attention." in name


def _rename(name: str) -> str:
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _as_conv(tensor: Tensor) -> Tensor:
    """A (out, in) or old (out, in, 1, 1) projection as a 1x1 convolution; biases and norms stay as they are."""
    return tensor if tensor.ndim == 1 else tensor.reshape(*tensor.shape[:2], 1, 1)
