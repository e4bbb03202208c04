"""The average of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from train_toys import OwnModule

from ddpm_deploy.train.ema import EMA


def test_average_follows_the_recursion_with_a_warm_up() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 1.0)
    ema, expected = EMA(network, 0.5), 1.0
    for step, value in enumerate([2.0, -3.0, 7.0, 7.0, 1.0, 0.0, 4.0, 4.0, 4.0, 4.0]):
        nn.init.constant_(network.weight, value)
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert float(ema.state["weight"]) == pytest.approx(expected, rel=1e-5)


def test_whole_number_buffers_are_copied_and_the_network_is_untouched() -> None:
    network = OwnModule()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    ema = EMA(network, 0.99)
    network.calls += 41
    ema.update(0)
    assert int(ema.state["calls"]) == 41
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.named_parameters())


def test_averages_of_half_precision_weights_are_float32() -> None:
    ema = EMA(nn.Linear(2, 2).to(torch.bfloat16), 0.999)
    ema.update(0)
    assert {tensor.dtype for tensor in ema.state.values()} == {torch.float32}


def test_one_nan_weight_is_noticed() -> None:
    network = OwnModule()
    ema = EMA(network, 0.9)
    assert ema.is_finite()
    with torch.no_grad():
        network.inner[0].weight[1, 1] = float("nan")
    ema.update(100)
    assert not ema.is_finite()
