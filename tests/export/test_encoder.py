"""The encoder's own graph: traced from a copy, and refused where it gives no condition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ddpm_deploy.bundle import Condition
from ddpm_deploy.errors import ExportError
from ddpm_deploy.export.api import _encoder
from ddpm_deploy.export.encoder import Encoder, example_tokens, trace_encoder
from ddpm_deploy.export.recipe import make_recipe
from ddpm_deploy.tokenizer import PADDING, Tokenizer

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
    np.testing.assert_allclose(
        traced.truth["goal"], traced.feeds["observation"] @ weight.T + bias, rtol=1e-5, atol=1e-6
    )
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


# -- text -------------------------------------------------------------------------------------------------------------

TOKENIZER = Tokenizer(("blue", "red"), 4)
TOKENS = (Condition("tokens", (4,), "int64"),)
FEATURES = [Condition("text", (4, 3), "float32", null=0.0), Condition("pooled", (3,), "float32", null=0.0)]


class Reader(nn.Module):
    """Features of each token and of them all."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(TOKENIZER.size, 3)

    def forward(self, tokens: Any) -> Any:
        text = self.table(tokens) * (tokens != PADDING)[:, :, None]
        return text, text.sum(dim=1)


def test_an_encoder_may_compute_several_conditions_and_is_measured_with_prompts() -> None:
    traced = trace_encoder(Encoder(Reader(), TOKENS, ("text", "pooled"), TOKENIZER), FEATURES, 6)
    assert [spec.name for spec in traced.file.outputs] == ["text", "pooled"]
    np.testing.assert_array_equal(traced.feeds["tokens"], example_tokens(TOKENIZER, 6))
    np.testing.assert_allclose(traced.truth["pooled"], traced.truth["text"].sum(axis=1), rtol=1e-6, atol=1e-6)


def test_example_prompts_use_the_words_in_all_lengths_and_one_is_empty() -> None:
    tokens = example_tokens(TOKENIZER, 9)
    assert set(tokens.ravel()) == {PADDING, *TOKENIZER.encode("blue red")[:2]}
    assert set((tokens != PADDING).sum(axis=1)) == {0, 1, 2, 3, 4}
    assert not tokens[1].any()


def test_an_onnx_file_is_an_encoder_as_it_is(tmp_path: Any) -> None:
    own = trace_encoder(Encoder(Reader(), TOKENS, ("text", "pooled"), TOKENIZER), FEATURES)
    for value in (*own.model.graph.input, *own.model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "rows"
    path = tmp_path / "reader.onnx"
    path.write_bytes(own.model.SerializeToString())
    asked = {"path": str(path), "condition": ["text", "pooled"], "tokenizer": TOKENIZER.to_dict(),
             "inputs": [{"name": "tokens", "shape": [4], "dtype": "int64"}]}  # fmt: skip
    recipe = make_recipe({"encoder": asked}).encoder
    assert recipe is not None
    traced = trace_encoder(_encoder(recipe), FEATURES)
    assert traced.file.inputs == own.file.inputs
    for name, values in own.truth.items():
        np.testing.assert_allclose(traced.truth[name], values, rtol=1e-6, atol=1e-6)


def test_a_tokenizer_without_an_input_for_its_tokens_is_refused() -> None:
    with pytest.raises(ExportError, match=r"encoder: got a tokenizer of 4 tokens, but no input tokens"):
        trace_encoder(Encoder(nn.Linear(4, 3), OBSERVED, "goal", TOKENIZER), [GOAL])


def test_options_of_an_onnx_encoder_are_refused() -> None:
    asked = {"path": "reader.onnx", "condition": "goal", "inputs": [], "options": {"width": 3}}
    recipe = make_recipe({"encoder": asked}).encoder
    assert recipe is not None
    with pytest.raises(ExportError, match=r"encoder: options: of no use to reader.onnx"):
        _encoder(recipe)
