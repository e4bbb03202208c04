"""Features: a file of the user's with its hash, a classifier trained here, or the pixels."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from ddpm_deploy.bundle import default_bundle, read_bundle
from ddpm_deploy.evaluate.data import RealData, Samples, open_data
from ddpm_deploy.evaluate.features import load_features, open_features, principal_components

RNG = np.random.default_rng(0)


class MeanColour(torch.nn.Module):
    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        means = x.mean(dim=(2, 3))
        return means if return_features else means * 0


@pytest.fixture
def torchscript(tmp_path):
    path = tmp_path / "colour.pt"
    torch.jit.script(MeanColour()).save(str(path))
    return path


def onnx_means(path, side):
    """Mean of each channel, (n, 3, 1, 1), of pictures of a fixed side, or of any."""
    axes = ["n", 3, side or "h", side or "w"]
    node = helper.make_node("GlobalAveragePool", ["x"], ["y"])
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, axes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, 1, 1])],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_a_torchscript_file_is_given_bytes_as_floats_and_named_by_its_hash(torchscript):
    features = load_features(torchscript, (3, 4, 4))
    samples = np.full((70, 3, 4, 4), -1, np.float32)
    samples[:, 1] = 1
    assert features.of(samples).tolist() == [[0, 255, 0]] * 70
    assert features.name == f"colour.pt, sha256 {hashlib.sha256(torchscript.read_bytes()).hexdigest()}"


@pytest.mark.parametrize("side", [None, 12])
def test_an_onnx_file_takes_grey_pictures_three_times_in_the_size_that_it_fixes(tmp_path, side):
    features = load_features(onnx_means(tmp_path / "means.onnx", side), (1, 8, 8))
    found = features.of(np.full((3, 1, 8, 8), 0.2, np.float32))
    assert found == pytest.approx(np.full((3, 3), 153), abs=0.01)


def test_a_file_that_gives_no_features_is_refused(tmp_path, torchscript):
    class Whole(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    torch.jit.script(Whole()).save(str(tmp_path / "whole.pt"))
    with pytest.raises(ValueError, match=r"got features of shape \(2, 3, 4, 4\), expected \(2, D\)"):
        load_features(tmp_path / "whole.pt", (3, 4, 4)).of(np.zeros((2, 3, 4, 4), np.float32))
    with pytest.raises(ValueError, match="expected a file ending in"):
        load_features(tmp_path / "weights.pkl", (3, 4, 4))
    with pytest.raises(ValueError, match="takes pictures, but the samples have shape"):
        load_features(torchscript, (7,))


def test_the_classifier_is_named_as_trained_here_with_its_accuracy(digits):
    features = open_features(digits)
    assert features.name.startswith("64 features of a classifier trained here on digits (1437 samples, 9")
    assert features.accuracy > 0.95
    assert np.mean(features.classify(digits.held_out.x) == digits.held_out.labels) == features.accuracy
    assert features.of(digits.held_out.x[:5]).shape == (5, 64)


def test_a_file_brings_the_features_and_the_classifier_still_judges(digits, torchscript):
    features = open_features(digits, torchscript)
    assert features.name.startswith("colour.pt, sha256")
    assert features.accuracy > 0.95


def test_features_of_shapes_have_a_mean_variance_of_1_and_say_so(monkeypatch):
    monkeypatch.setattr("ddpm_deploy.evaluate.features.SCENE_STEPS", 40)
    shapes = open_data("shapes", read_bundle(default_bundle("shapes")).manifest, most=500)
    features = open_features(shapes)
    assert features.of(shapes.known.x).var(axis=0).mean() == pytest.approx(1)
    assert features.name.endswith("scaled to mean variance 1")


def test_samples_without_labels_are_compared_by_where_the_known_ones_vary_most():
    known = RNG.standard_normal((300, 5)) * [10, 5, 1, 0.1, 0.01] + 3
    samples = Samples(known, {}, None)
    features = principal_components(RealData("toy", samples, samples, "by hand"))
    found = features.of(known)
    assert found.mean(axis=0) == pytest.approx(np.zeros(5), abs=1e-9)
    assert found.var(axis=0) == pytest.approx(np.linalg.eigvalsh(np.cov(known.T, bias=True))[::-1], rel=1e-6)
    assert features.classify is None
