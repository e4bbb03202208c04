"""With the same weights, the U-Net is diffusers' UNet2DModel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DModel

from ddpm_deploy.model import UNet, UNetConfig
from ddpm_deploy.model.diffusers_weights import read_config, read_weights

SMALL: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
    "norm_num_groups": 8,
}

# As in the config.json of google/ddpm-cifar10-32.
CIFAR10: dict[str, Any] = {
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (128, 256, 256, 256),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
    "norm_num_groups": 32,
    "norm_eps": 1e-6,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "downsample_padding": 0,
    "act_fn": "silu",
    "mid_block_scale_factor": 1,
    "center_input_sample": False,
    "time_embedding_type": "positional",
}

CONFIGS: dict[str, dict[str, Any]] = {
    "one head": SMALL,
    "four heads": SMALL | {"attention_head_dim": 8, "layers_per_block": 2},
    "as in DDPM": SMALL | {"downsample_padding": 0, "freq_shift": 1, "flip_sin_to_cos": False, "norm_eps": 1e-6},
    "three levels, attention on top": SMALL
    | {
        "block_out_channels": (16, 16, 32),
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D"),
    },
    "no attention": SMALL
    | {
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "add_attention": False,
    },
    "learned variance": SMALL | {"out_channels": 6},
    "one channel, dropout": SMALL | {"in_channels": 1, "out_channels": 1, "dropout": 0.3},
    "classes": SMALL | {"num_class_embeds": 4},
    "CIFAR-10": CIFAR10,
}


def pair(config: dict[str, Any]) -> tuple[UNet2DModel, UNet]:
    torch.manual_seed(0)
    theirs = UNet2DModel(**config).eval()
    with torch.no_grad():  # fresh norms and biases are ones and zeros, which would hide a mix-up
        for parameter in theirs.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    ours = UNet(read_config(dict(theirs.config))).eval()
    ours.load_state_dict(read_weights(theirs.state_dict()))
    return theirs, ours


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_predictions_equal_those_of_diffusers(name: str) -> None:
    theirs, ours = pair(CONFIGS[name])
    size, classes = theirs.config["sample_size"], theirs.config["num_class_embeds"]
    for batch in (1, 3) if name == "CIFAR-10" else (1, 3, 7):
        x = torch.randn(batch, theirs.config["in_channels"], size, size)
        t = torch.linspace(999.0, 0.25, batch)
        labels = torch.arange(batch) % classes if classes else None
        expected = theirs(x, t, class_labels=labels).sample
        actual = ours(x, t, labels)
        assert float((actual - expected).norm() / expected.norm()) <= 1e-5


def test_cifar10_configuration_is_the_preset() -> None:
    assert read_config(CIFAR10) == UNetConfig(**{**vars(UNetConfig.cifar10(dropout=0.0)), "out_channels": 3})


def test_old_attention_names_and_shapes_are_read_as_the_new_ones() -> None:
    theirs, _ = pair(CONFIGS["four heads"])
    state = theirs.state_dict()
    renames = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    old = {}
    for name, tensor in state.items():
        for new_name, old_name in renames.items():
            if new_name in name:
                name = name.replace(new_name, old_name)
                tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        old[name] = tensor
    assert set(old) != set(state)
    expected, actual = read_weights(state), read_weights(old)
    assert set(actual) == set(expected)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_a_missing_head_size_means_one_head() -> None:
    config = {name: value for name, value in CIFAR10.items() if name != "attention_head_dim"}
    assert read_config(config).attention_head_dim is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("time_embedding_type", "fourier"),
        ("resnet_time_scale_shift", "scale_shift"),
        ("downsample_type", "resnet"),
        ("act_fn", "relu"),
        ("mid_block_type", None),
        ("class_embed_type", "timestep"),
        ("center_input_sample", True),
        ("surprise", 1),
        ("block_out_channels", None),
        ("block_out_channels", "wide"),
        ("up_block_types", 4),
        ("dropout", "much"),
        ("freq_shift", [1]),
    ],
)
def test_what_the_network_cannot_do_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        read_config(CIFAR10 | {name: value})


def test_an_unknown_block_is_refused_with_the_choices() -> None:
    blocks = ("SkipDownBlock2D", *CIFAR10["down_block_types"][1:])
    with pytest.raises(ValueError, match="'SkipDownBlock2D', expected one of DownBlock2D"):
        read_config(CIFAR10 | {"down_block_types": blocks})
