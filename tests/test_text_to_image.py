"""From a prompt to pictures: tokens, the encoder once, the same features and samples in torch and in the graphs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddpm_deploy import BundleError, Sampler
from ddpm_deploy.backends.onnxruntime import OnnxRuntimeBackend
from ddpm_deploy.bundle import Condition, read_bundle, read_onnx_manifest
from ddpm_deploy.encoder import check_encoder
from ddpm_deploy.one_file import sampler_feeds
from ddpm_deploy.sample import main as sample
from ddpm_deploy.shapes.caption import vocabulary
from ddpm_deploy.tokenizer import Tokenizer

PROMPTS = ["a red circle left of a blue square", "one white cross", ""]
SMALL: dict[str, Any] = {"solver": "ddim", "steps": 3}


@pytest.fixture(scope="module")
def sampler(text_bundle: Path) -> Iterator[Sampler]:
    with Sampler.load(text_bundle, threads=1) as opened:
        yield opened


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, int]]:
    """The names of the feeds and their batch, of every call of a graph."""
    seen: list[dict[str, int]] = []
    plain = OnnxRuntimeBackend.run
    note = lambda feeds: seen.append({name: len(array) for name, array in feeds.items()})  # noqa: E731
    monkeypatch.setattr(OnnxRuntimeBackend, "run", lambda self, feeds: note(feeds) or plain(self, feeds))
    return seen


# -- the bundle -------------------------------------------------------------------------------------------------------


def test_the_bundle_of_a_run_has_the_encoder_its_tokenizer_and_features_that_can_be_dropped(text_bundle: Path) -> None:
    manifest = read_bundle(text_bundle).manifest
    assert manifest.tokenizer == Tokenizer(tuple(vocabulary()), 24)
    assert manifest.conditions == (
        Condition("text", (24, 16), "float32", null=0.0),
        Condition("pooled", (16,), "float32", null=0.0),
    )
    assert {file.role for file in manifest.files} == {"denoiser", "step", "sampler", "encoder"}
    assert all(file.parity for file in manifest.files if file.target != "torch")
    encoder = next(file for file in manifest.files if file.role == "encoder")
    assert [spec.name for spec in encoder.inputs] == ["tokens"]
    assert [spec.name for spec in encoder.outputs] == ["text", "pooled"]
    assert manifest.network is not None
    assert manifest.network["kind"] == "unet"


def test_the_tokenizer_travels_in_the_encoder_s_own_file(text_bundle: Path) -> None:
    alone = read_onnx_manifest(text_bundle / "encoder.fp32.onnx")
    assert alone.tokenizer == read_bundle(text_bundle).manifest.tokenizer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "bytes"}, r"tokenizer\.kind: got 'bytes', expected one of words"),
        ({"length": 0}, r"tokenizer\.length: got 0"),
        ({"vocabulary": ["Red"]}, r"tokenizer\.vocabulary: got 'Red', expected a lower-case word"),
        ({"vocabulary": ["a", "a"]}, r"tokenizer\.vocabulary: got a word twice"),
        ({"vocabulary": "abc"}, r"tokenizer\.vocabulary: got 'abc', expected a list"),
        ({"extra": 1}, r"tokenizer: unknown key 'extra'"),
    ],
)
def test_a_tokenizer_that_is_none_is_refused_by_name(
    text_bundle: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    shutil.copytree(text_bundle, tmp_path / "b")
    file = tmp_path / "b" / "bundle.json"
    manifest = json.loads(file.read_text())
    manifest["tokenizer"] |= change
    file.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=f"bundle.json: {message}"):
        read_bundle(tmp_path / "b")


def test_an_encoder_that_does_not_take_the_tokens_is_refused(text_bundle: Path) -> None:
    manifest = read_bundle(text_bundle).manifest
    encoder = next(file for file in manifest.files if file.role == "encoder")
    with pytest.raises(BundleError, match=r"got inputs tokens int64\[B, 24\], expected tokens int64\[B, 7\]"):
        check_encoder(encoder, manifest.conditions, Tokenizer(("a",), 7))


def test_it_exports_in_any_size_and_in_half_precision(text_bundle: Path, tmp_path: Path) -> None:
    from ddpm_deploy.export import Options, export_run

    options = Options(targets=("onnxruntime-cuda",), precisions=("fp32", "fp16"), graphs=("denoiser",),
                      parity_timesteps=2, free_size=True)  # fmt: skip
    bundle = export_run(text_bundle.parent / "run", tmp_path / "bundle", options=options)
    assert bundle.manifest.size_multiple == 8
    assert {file.precision for file in bundle.manifest.files} == {"fp32", "fp16"}
    with Sampler.load(bundle, threads=1) as opened:
        assert opened.sample(1, prompt=PROMPTS[0], size=(16, 24), **SMALL).shape == (1, 3, 16, 24)


# -- prompts ----------------------------------------------------------------------------------------------------------


def test_a_prompt_gives_the_same_features_in_torch_and_in_the_graph(text_bundle: Path, sampler: Sampler) -> None:
    from ddpm_deploy.train.runs import load_run

    run = load_run(text_bundle.parent / "run")
    assert run.tokenizer is not None
    with torch.inference_mode():
        text, pooled = run.network.encoder(torch.from_numpy(run.tokenizer.encode(PROMPTS)))
    found = sampler.encode({"prompt": PROMPTS})
    np.testing.assert_allclose(found["text"], text, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["pooled"], pooled, rtol=1e-5, atol=1e-5)
    assert not found["text"][2].any()
    assert not found["pooled"][2].any()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_torch_and_the_graphs_draw_the_same_for_a_prompt(text_bundle: Path, sampler: Sampler, guidance: float) -> None:
    given: dict[str, Any] = {"prompt": PROMPTS, "guidance": guidance, **SMALL}
    with Sampler.load(text_bundle, backend="torch", threads=1) as opened:
        np.testing.assert_allclose(opened.sample(3, **given), sampler.sample(3, **given), rtol=0, atol=2e-5)


def test_the_whole_sampler_graph_draws_what_the_loop_draws(text_bundle: Path, sampler: Sampler) -> None:
    bundle = read_bundle(text_bundle)
    file = bundle.file("sampler", "fp32", "onnxruntime-cpu")
    x_T, plan = np.random.default_rng(0).standard_normal((3, 3, 32, 32), np.float32), sampler.plan(**SMALL)
    feeds = {"x_T": x_T, **sampler_feeds(file.inputs, plan, x_T, None), **sampler.encode({"prompt": PROMPTS})}
    feeds["guidance"] = np.full((len(plan), 3), 3, np.float32)
    with OnnxRuntimeBackend.from_bytes(bundle.open_bytes(file), file.inputs, file.outputs) as graph:
        found = graph.run(feeds)["samples"]
    expected = sampler.sample(x_T=x_T, plan=plan, prompt=PROMPTS, guidance=3.0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_one_prompt_is_encoded_once_for_all_samples_steps_and_batches(
    sampler: Sampler, calls: list[dict[str, int]]
) -> None:
    sampler.sample(5, prompt=PROMPTS[0], solver="ddim", steps=4, batch_size=2)
    assert calls[0] == {"tokens": 1}
    assert [set(call) for call in calls[1:]] == [{"x", "t", "text", "pooled"}] * 12


def test_each_sample_may_have_a_prompt_of_its_own(sampler: Sampler) -> None:
    together = sampler.sample(3, prompt=PROMPTS, guidance=2.0, **SMALL)
    for i, prompt in enumerate(PROMPTS[:2]):
        alone = sampler.sample(1, start=i, prompt=prompt, guidance=2.0, **SMALL)
        np.testing.assert_allclose(together[i], alone[0], rtol=0, atol=1e-5)
    assert np.abs(together[0] - sampler.sample(1, prompt=PROMPTS[1], guidance=2.0, **SMALL)[0]).max() > 1e-3


def test_no_prompt_and_an_empty_one_are_the_same(sampler: Sampler) -> None:
    np.testing.assert_array_equal(sampler.sample(2, **SMALL), sampler.sample(2, prompt="", **SMALL))


def test_a_stream_and_the_condition_of_that_name_take_prompts_too(sampler: Sampler) -> None:
    expected = sampler.sample(2, prompt=PROMPTS[0], **SMALL)
    np.testing.assert_array_equal(list(sampler.stream(2, prompt=PROMPTS[0], **SMALL))[-1].x, expected)
    np.testing.assert_array_equal(sampler.sample(2, condition={"prompt": PROMPTS[0]}, **SMALL), expected)
    tokens = sampler.manifest.tokenizer.encode(PROMPTS[0]) if sampler.manifest.tokenizer else None
    np.testing.assert_array_equal(sampler.sample(2, condition={"tokens": tokens}, **SMALL), expected)  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": ["a", "b", "c"]}, "condition 'tokens': got a batch of 3, expected 2"),
        (
            {"prompt": "a red circle with an indescribably long tail"},
            r"prompt: .* takes \d+ tokens, expected at most 24",
        ),
        ({"prompt": "a", "condition": {"prompt": "a"}}, "prompt: given twice"),
        ({"prompt": "a", "condition": {"tokens": np.zeros(24, np.int64)}}, "prompt: given beside tokens"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(sampler: Sampler, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler.sample(2, **given, **SMALL)


def test_a_bundle_that_reads_no_prompts_says_so() -> None:
    with Sampler.load(threads=1) as digits, pytest.raises(ValueError, match="prompt: the bundle has no encoder"):
        digits.sample(1, prompt="seven")


def test_the_command_draws_prompts_in_turn(text_bundle: Path, sampler: Sampler, tmp_path: Path) -> None:
    out = tmp_path / "x.npy"
    given = [word for text in PROMPTS[:2] for word in ("--prompt", text)]
    flags = ["--num", "3", "--guidance", "3", "--solver", "ddim", "--steps", "3", "--threads", "1", "--out", str(out)]
    assert sample([str(text_bundle), *given, *flags]) == 0
    turn = [PROMPTS[0], PROMPTS[1], PROMPTS[0]]
    np.testing.assert_allclose(np.load(out), sampler.sample(3, prompt=turn, guidance=3.0, **SMALL), rtol=0, atol=1e-5)


def test_openvino_reads_prompts(text_bundle: Path, sampler: Sampler) -> None:
    pytest.importorskip("openvino", reason="the other runtime")
    given: dict[str, Any] = {"prompt": PROMPTS, "guidance": 2.0, **SMALL}
    with Sampler.load(text_bundle, backend="openvino", threads=1) as opened:
        np.testing.assert_allclose(opened.sample(3, **given), sampler.sample(3, **given), rtol=0, atol=5e-5)


def test_a_run_on_captions_resumes_with_its_tokenizer_and_refuses_another(text_bundle: Path) -> None:
    from ddpm_deploy.errors import TrainingError
    from ddpm_deploy.train.runs import read_description, require_same

    found = read_description(text_bundle.parent / "run")
    require_same(found, found, Path("run"))
    with pytest.raises(TrainingError, match="tokenizer: got"):
        require_same(found, replace(found, tokenizer=Tokenizer(("a",), 24)), Path("run"))
