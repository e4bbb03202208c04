"""The text encoder and the U-Net that reads it: padding counts for nothing, and no text at all is zeros."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ddpm_deploy.model import TextConfig, TextEncoder, TextToImage, UNet, UNetConfig, build_network
from ddpm_deploy.model.blocks import CrossAttention, Text
from ddpm_deploy.model.text import text_to_image
from ddpm_deploy.tokenizer import Tokenizer

TEXT = TextConfig(tokens=40, length=6, channels=16, pooled_channels=12, layers=2, heads=2)
UNET = UNetConfig(
    in_channels=3,
    block_out_channels=(8, 16),
    layers_per_block=1,
    down_attention=(False, True),
    up_attention=(True, False),
    attention_head_dim=8,
    norm_groups=4,
    text_channels=16,
    pooled_channels=12,
    patch=2,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def encoder() -> TextEncoder:
    return TextEncoder(TEXT).eval()


def tokens(*rows: list[int], length: int = TEXT.length) -> Tensor:
    return torch.tensor([row + [0] * (length - len(row)) for row in rows])


def text_of(length: int, padding: int = 0) -> Tensor:
    return torch.cat([torch.randn(2, length, 16), torch.zeros(2, padding, 16)], dim=1)


# -- the encoder ------------------------------------------------------------------------------------------------------


def test_no_text_at_all_is_zeros() -> None:
    text, pooled = encoder()(tokens([], [3, 4]))
    assert not text[0].any()
    assert not pooled[0].any()
    assert text[1, :2].abs().sum(dim=1).all()
    assert pooled[1].any()


def test_padding_is_zeros_and_does_not_change_what_the_words_mean() -> None:
    longer = TextEncoder(replace(TEXT, length=9)).eval()
    shorter = encoder()
    state = longer.state_dict() | {"position": longer.position[: TEXT.length]}
    shorter.load_state_dict(state)
    row = [5, 6, 7]
    text, pooled = shorter(tokens(row))
    text_longer, pooled_longer = longer(tokens(row, length=9))
    assert not text_longer[:, 3:].any()
    torch.testing.assert_close(text[:, :3], text_longer[:, :3])
    torch.testing.assert_close(pooled, pooled_longer)


def test_the_order_of_words_matters() -> None:
    network = encoder()
    assert (network(tokens([5, 6]))[1] - network(tokens([6, 5]))[1]).abs().max() > 1e-3


def test_a_text_does_not_depend_on_its_neighbours_in_the_batch() -> None:
    network = encoder()
    both = network(tokens([5, 6, 7], [8]))
    for i, row in enumerate(([5, 6, 7], [8])):
        for together, alone in zip(both, network(tokens(row)), strict=True):
            torch.testing.assert_close(together[i], alone[0])


# -- cross-attention --------------------------------------------------------------------------------------------------


def test_cross_attention_ignores_padding() -> None:
    attention, x, features = CrossAttention(16, 16, UNET), torch.randn(2, 16, 4, 4), text_of(3)
    padded = torch.cat([features, torch.zeros(2, 5, 16)], dim=1)
    torch.testing.assert_close(attention(x, Text.of(padded)), attention(x, Text.of(features)))


def test_cross_attention_reads_every_word() -> None:
    attention, x, features = CrossAttention(16, 16, UNET), torch.randn(2, 16, 4, 4), text_of(3, padding=2)
    read = attention(x, Text.of(features))
    for i in range(3):
        other = features.clone()
        other[:, i] += 1
        assert (attention(x, Text.of(other)) - read).abs().max() > 1e-4


def test_without_any_text_cross_attention_adds_the_same_everywhere_and_stays_finite() -> None:
    attention, x = CrossAttention(16, 16, UNET), torch.randn(2, 16, 4, 4)
    added = attention(x, Text.of(torch.zeros(2, 5, 16))) - x
    torch.testing.assert_close(added, attention.out.bias[None, :, None, None].expand_as(added), atol=1e-6, rtol=1e-5)


def test_cross_attention_is_torch_s_own() -> None:
    attention, x, features = CrossAttention(16, 16, UNET), torch.randn(2, 16, 4, 4), text_of(3, padding=2)
    q = attention.query(attention.norm(x)).reshape(2, 2, 8, 16).transpose(2, 3)
    k, v = (part.reshape(2, 5, 2, 8).transpose(1, 2) for part in attention.key_value(features).chunk(2, dim=2))
    present = (features != 0).any(dim=2)[:, None, None, :]
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=present)
    expected = x + attention.out(mixed.transpose(2, 3).reshape(2, 16, 4, 4))
    torch.testing.assert_close(attention(x, Text.of(features)), expected)


# -- the U-Net --------------------------------------------------------------------------------------------------------


def predict(network: UNet, text: Tensor | None, pooled: Tensor | None) -> Tensor:
    torch.manual_seed(1)
    return network(torch.randn(2, 3, 8, 8), torch.tensor([3.0, 700.0]), text=text, pooled=pooled)


def test_the_network_reads_text_where_it_attends_and_nowhere_else() -> None:
    names = [name for name, module in UNet(UNET).named_modules() if isinstance(module, CrossAttention)]
    assert names == ["down.1.texts.0", "middle.text", "up.0.texts.0", "up.0.texts.1"]
    assert not any(
        "text" in name for name in UNet(replace(UNET, text_channels=None, pooled_channels=None)).state_dict()
    )


def test_both_the_words_and_the_whole_text_steer() -> None:
    network, text, pooled = UNet(UNET).eval(), text_of(3, padding=3), torch.randn(2, 12)
    usual = predict(network, text, pooled)
    assert usual.shape == (2, 3, 8, 8)
    assert (predict(network, -text, pooled) - usual).abs().max() > 1e-4
    assert (predict(network, text, -pooled) - usual).abs().max() > 1e-4


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patches_change_the_resolution_inside_and_not_outside(patch: int) -> None:
    network = UNet(replace(UNET, patch=patch, text_channels=None, pooled_channels=None))
    assert network.config.size_multiple == 2 * patch
    x = torch.randn(1, 3, 16, 16)
    assert network.conv_in(x).shape[2:] == (16 // patch, 16 // patch)
    assert network(x, torch.zeros(1)).shape == x.shape
    with pytest.raises(ValueError, match=f"multiples of {2 * patch}"):
        network(torch.randn(1, 3, 2 * patch + 1, 16), torch.zeros(1))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pooled": torch.zeros(2, 12)}, "text: got None channels, but the network has text_channels 16"),
        ({"text": torch.zeros(2, 6, 16)}, "pooled: got None channels"),
        ({"text": torch.zeros(2, 6, 15), "pooled": torch.zeros(2, 12)}, "text: got 15 channels"),
    ],
)
def test_text_of_another_kind_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet(UNET)(torch.zeros(2, 3, 8, 8), torch.zeros(2), **given)


def test_text_for_a_network_that_reads_none_is_refused() -> None:
    network = UNet(replace(UNET, text_channels=None, pooled_channels=None))
    with pytest.raises(ValueError, match="text: got 16 channels, but the network has text_channels None"):
        network(torch.zeros(2, 3, 8, 8), torch.zeros(2), text=torch.zeros(2, 6, 16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pooled_channels": None}, "text_channels, pooled_channels: got one of the two"),
        ({"text_channels": 0}, "text_channels: got 0"),
        ({"patch": 0}, "patch: got 0"),
    ],
)
def test_a_config_that_could_not_work_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(UNET, **change)


# -- the pair ---------------------------------------------------------------------------------------------------------


def test_the_pair_can_be_built_again_from_its_spec() -> None:
    pair = TextToImage(TextEncoder(TEXT), UNet(UNET))
    again = build_network(pair.spec())
    again.load_state_dict(pair.state_dict())
    given = (torch.randn(2, 3, 8, 8), torch.rand(2) * 1000, tokens([5, 6], []))
    torch.testing.assert_close(again(*given), pair(*given))


def test_dropping_the_text_is_dropping_its_tokens() -> None:
    pair = TextToImage(TextEncoder(TEXT), UNet(UNET)).eval()
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([500.0])
    zeros = {"text": torch.zeros(1, 6, 16), "pooled": torch.zeros(1, 12)}
    torch.testing.assert_close(pair(x, t, tokens([])), pair.denoiser(x, t, **zeros))


def test_both_parts_learn() -> None:
    pair = TextToImage(TextEncoder(TEXT), UNet(UNET))
    pair(torch.randn(2, 3, 8, 8), torch.rand(2), tokens([5, 6], [7])).square().mean().backward()
    used = [name for name, p in pair.named_parameters() if p.grad is None or not p.grad.any()]
    assert used == []


def test_the_encoder_is_as_wide_as_what_reads_it() -> None:
    tokenizer = Tokenizer(("red", "circle"), 5)
    pair = text_to_image(tokenizer, UNET)
    assert pair.encoder.config == TextConfig(tokenizer.size, 5, 16, 12)
    with pytest.raises(ValueError, match="text_channels: got none"):
        text_to_image(tokenizer, replace(UNET, text_channels=None, pooled_channels=None))
    with pytest.raises(ValueError, match=r"text_to_image: got keys \['encoder'\]"):
        TextToImage.from_config({"encoder": {}})
    with pytest.raises(ValueError, match="heads: got 3, expected a divisor of 16"):
        replace(TEXT, heads=3)
