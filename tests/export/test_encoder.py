"""The encoder's own graph: traced from a copy, and refused where it gives no condition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ddpm_deploy.bundle import Condition
from ddpm_deploy.errors import ExportError
from ddpm_deploy.export.encoder import Encoder, trace_encoder

OBSERVED = (Condition("observation", (4,), "float32"),)
GOAL = Condition("goal", (3,), "float32")


class Wrapped(nn.Linear):
    def forward(self, observation: Any) -> Any:
        return (super().forward(observation),)


def test_the_module_is_left_as_it_was_and_the_truth_is_its_own() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)).half().train()
    traced = trace_encoder(Encoder(module, OBSERVED, "goal"), [GOAL])
    assert module.training
    assert module[0].weight.dtype == torch.float16
    weight, bias = (p.detach().float().numpy() for p in module[0].parameters())
    np.testing.assert_allclose(traced.truth, traced.feeds["observation"] @ weight.T + bias, rtol=1e-5, atol=1e-6)
    assert [spec.name for spec in traced.file.outputs] == ["goal"]


@pytest.mark.parametrize(
    ("module", "condition", "message"),
    [
        (nn.Identity(), "aim", "encoder: got condition 'aim', expected one of goal"),
        (nn.Linear(4, 2), "goal", "got outputs"),
        (Wrapped(4, 3), "goal", "encoder: got an output of type tuple, expected a tensor"),
    ],
)
def test_a_module_that_computes_no_condition_is_refused(module: nn.Module, condition: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        trace_encoder(Encoder(module, OBSERVED, condition), [GOAL])
