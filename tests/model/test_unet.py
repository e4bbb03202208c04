"""The U-Net by itself: size, manners, what it refuses, what its exported graph looks like."""

from __future__ import annotations

import io

import onnx
import pytest
import torch

from ddpm_deploy.model import UNet, UNetConfig, build_network

TOY = UNetConfig(
    in_channels=2,
    block_out_channels=(8, 16),
    layers_per_block=1,
    down_attention=(False, True),
    up_attention=(True, False),
    attention_head_dim=4,
    norm_groups=4,
)


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def on_meta(config: UNetConfig) -> UNet:
    with torch.device("meta"):
        return UNet(config)


def test_cifar10_network_has_the_size_of_the_papers() -> None:
    assert count(on_meta(UNetConfig.cifar10())) == 35_746_307


def test_256x256_network_has_the_size_of_the_published_models() -> None:
    assert count(on_meta(UNetConfig.pictures256())) == 113_673_219


def test_digits_network_has_less_than_a_million_parameters() -> None:
    assert count(on_meta(UNetConfig.digits())) < 1_000_000


@pytest.mark.parametrize("config", [TOY, UNetConfig.digits(), UNetConfig.cifar10()], ids=["toy", "digits", "cifar10"])
def test_spec_rebuilds_a_network_that_takes_the_same_weights(config: UNetConfig) -> None:
    network = on_meta(config)
    with torch.device("meta"):
        again = build_network(network.spec())
    assert isinstance(again, UNet)
    assert again.config == config
    again.load_state_dict(network.state_dict())


def test_every_sample_of_a_batch_is_predicted_by_itself() -> None:
    network = UNet(TOY).eval()
    x, t = torch.randn(5, 2, 8, 8), torch.tensor([0.0, 3.5, 100.0, 998.0, 999.0])
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(network(x, t), alone, rtol=1e-5, atol=1e-6)


def test_fractional_time_lies_between_its_neighbours_not_on_one() -> None:
    network = UNet(TOY).eval()
    x = torch.randn(1, 2, 8, 8)
    low, middle, high = (network(x, torch.tensor([t])) for t in (10.0, 10.5, 11.0))
    assert not torch.allclose(middle, low)
    assert not torch.allclose(middle, high)


def test_time_scale_multiplies_time() -> None:
    scaled = UNet(UNetConfig(in_channels=1, block_out_channels=(8,), norm_groups=4, time_scale=1000.0)).eval()
    plain = UNet(UNetConfig(in_channels=1, block_out_channels=(8,), norm_groups=4)).eval()
    plain.load_state_dict(scaled.state_dict())
    x = torch.randn(3, 1, 8, 8)
    fractions = torch.tensor([0.0, 0.25, 1.0])
    torch.testing.assert_close(scaled(x, fractions), plain(x, 1000 * fractions))


def test_learned_variance_doubles_the_output_channels() -> None:
    network = UNet(UNetConfig(in_channels=3, out_channels=6, block_out_channels=(8,), norm_groups=4))
    assert network(torch.randn(2, 3, 8, 8), torch.zeros(2)).shape == (2, 6, 8, 8)


def test_labels_change_the_prediction() -> None:
    network = UNet(UNetConfig(in_channels=1, block_out_channels=(8,), norm_groups=4, num_classes=3)).eval()
    x, t = torch.randn(1, 1, 8, 8), torch.zeros(1)
    first, second = (network(x, t, labels=torch.tensor([label])) for label in (0, 2))
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("labels", [None, torch.tensor([0])], ids=["missing", "not wanted"])
def test_labels_must_be_given_exactly_where_the_network_has_classes(labels: torch.Tensor | None) -> None:
    classes = 3 if labels is None else None
    network = UNet(UNetConfig(in_channels=1, block_out_channels=(8,), norm_groups=4, num_classes=classes))
    with pytest.raises(ValueError, match="labels"):
        network(torch.randn(1, 1, 8, 8), torch.zeros(1), labels)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (1, 2, 7, 8), (1, 2, 8, 9), (2, 8, 8)])
def test_a_picture_of_the_wrong_shape_is_refused_with_its_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"got \({', '.join(map(str, shape))}\)"):
        UNet(TOY)(torch.zeros(shape), torch.zeros(shape[0]))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"surprise": 1}, "surprise"),
        ({"in_channels": 0}, "in_channels"),
        ({"in_channels": True}, "in_channels"),
        ({"block_out_channels": []}, "block_out_channels"),
        ({"block_out_channels": [8, 10]}, "norm_groups"),
        ({"block_out_channels": [2, 4], "norm_groups": 2}, "block_out_channels"),
        ({"down_attention": [True]}, "down_attention"),
        ({"up_attention": [1, 0]}, "up_attention"),
        ({"attention_head_dim": 3}, "attention_head_dim"),
        ({"dropout": 1.0}, "dropout"),
        ({"downsample_padding": 2}, "downsample_padding"),
        ({"num_classes": 0}, "num_classes"),
        ({"block_out_channels": 32}, "block_out_channels: got 32, expected tuple"),
        ({"block_out_channels": ["a"]}, "block_out_channels"),
        ({"time_scale": "a"}, "UNetConfig: time_scale: got 'a', expected float"),
        ({"time_scale": True}, "time_scale"),
        ({"middle_attention": 1}, "middle_attention: got 1, expected bool"),
        ({"layers_per_block": 2.0}, "layers_per_block"),
        ({"dropout": None}, "dropout"),
    ],
)
def test_a_bad_configuration_is_refused_by_the_name_of_the_field(change: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        UNetConfig.from_dict(TOY.to_dict() | change)


def test_a_configuration_without_its_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="'in_channels' is missing"):
        UNetConfig.from_dict({"block_out_channels": [8]})


def test_an_unknown_kind_of_network_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="'cnn', expected one of unet, mlp, conv1d"):
        build_network({"kind": "cnn", "config": {}})


def test_the_exported_graph_has_a_free_batch_and_no_shape_arithmetic_of_its_own() -> None:
    """At opset 21 normalisation is one node, so every Shape node would come from the network's own reshapes."""
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        UNet(TOY).eval(),
        (torch.randn(2, 2, 8, 8), torch.zeros(2)),
        dynamo=True,
        opset_version=21,
        dynamic_shapes={"x": {0: batch}, "t": {0: batch}},
        verbose=False,
    )
    assert program is not None
    stream = io.BytesIO()
    program.save(stream, external_data=False)
    graph = onnx.load_from_string(stream.getvalue()).graph
    kinds = {node.op_type for node in graph.node}
    assert not kinds & {"Shape", "If", "Loop"}
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param
