"""The models of the benchmarks."""

from __future__ import annotations

import torch

from benchmarks.models import unlabelled
from ddpm_deploy.model import UNet, UNetConfig

SHAPE = {"in_channels": 1, "block_out_channels": (8, 16), "norm_groups": 4}


def test_network_without_labels_draws_what_the_other_draws_for_no_label() -> None:
    torch.manual_seed(0)
    network = UNet(UNetConfig(**SHAPE, num_classes=10, null_class=True)).eval()
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([1.0, 500.0, 999.0])
    plain = unlabelled(network)
    assert plain.label is None
    with torch.no_grad():
        torch.testing.assert_close(plain(x, t), network(x, t, torch.full((3,), 10)), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(plain(x, t), network(x, t, torch.full((3,), 7)), atol=1e-3)


def test_network_that_knows_no_labels_is_left_as_it_is() -> None:
    network = UNet(UNetConfig(**SHAPE))
    assert unlabelled(network) is network
