"""The networks for samples that are not pictures."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ddpm_deploy.model import NETWORKS, build_network

SPECS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "mlp": ({"dim": 2, "hidden": 16, "layers": 2}, (2,)),
    "conv1d": ({"channels": 3, "hidden": 16, "layers": 2}, (3, 13)),
    "policy": ({"action_dim": 2, "channels": [8, 16], "time_channels": 8, "norm_groups": 4}, (2, 8)),
    "unet": ({"in_channels": 1, "block_out_channels": [8], "norm_groups": 4}, (1, 8, 8)),
}


def test_every_kind_of_network_is_tested_here() -> None:
    assert {*SPECS, "text_to_image"} == set(NETWORKS)  # which takes tokens too: see test_text.py


@pytest.mark.parametrize("kind", SPECS)
def test_output_has_the_shape_of_the_input_and_depends_on_both_inputs(kind: str) -> None:
    config, shape = SPECS[kind]
    network = build_network({"kind": kind, "config": config}).eval()
    x = torch.randn(3, *shape)
    out = network(x, torch.full((3,), 5.5))
    assert out.shape == x.shape
    assert out.dtype == torch.float32
    assert not torch.allclose(out, network(x, torch.full((3,), 900.0)))
    assert not torch.allclose(out, network(x + 1, torch.full((3,), 5.5)))


@pytest.mark.parametrize("kind", SPECS)
def test_spec_is_what_the_network_was_built_from(kind: str) -> None:
    config, _ = SPECS[kind]
    network = build_network({"kind": kind, "config": config})
    spec = network.spec()  # type: ignore[operator]
    assert spec["kind"] == kind
    assert config.items() <= spec["config"].items()
    again = build_network(spec)
    again.load_state_dict(network.state_dict())


@pytest.mark.parametrize("kind", SPECS)
def test_the_time_embedding_has_no_stored_table(kind: str) -> None:
    network = build_network({"kind": kind, "config": SPECS[kind][0]})
    assert set(network.state_dict()) == {name for name, _ in network.named_parameters()}


@pytest.mark.parametrize("kind", SPECS)
def test_unknown_keys_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="'size'"):
        build_network({"kind": kind, "config": SPECS[kind][0] | {"size": 3}})


@pytest.mark.parametrize(
    ("kind", "change"),
    [("mlp", {"hidden": 3}), ("mlp", {"layers": 0}), ("conv1d", {"kernel_size": 4}), ("conv1d", {"hidden": 2})],
)
def test_a_bad_size_is_refused_by_name(kind: str, change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        build_network({"kind": kind, "config": SPECS[kind][0] | change})


def test_a_signal_may_have_any_length() -> None:
    network = build_network({"kind": "conv1d", "config": SPECS["conv1d"][0]})
    for length in (1, 7, 64):
        assert network(torch.randn(2, 3, length), torch.zeros(2)).shape == (2, 3, length)
