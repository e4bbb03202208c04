"""Bundles with an encoder: raw inputs become conditions once per request, and conditions still may be given."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="writes the graphs by hand")
pytest.importorskip("onnxruntime", reason="runs the graphs")

from onnx import TensorProto, helper  # noqa: E402

from ddpm_deploy import BackendError, BackendUnavailable, BundleError, Sampler  # noqa: E402
from ddpm_deploy import bundle as b  # noqa: E402
from ddpm_deploy.backends.onnxruntime import OnnxRuntimeBackend  # noqa: E402
from ddpm_deploy.schedule import NoiseSchedule  # noqa: E402

SHAPE = (2, 4)
OBSERVATION, GAIN = ("observation", ("B", 3, 2)), ("gain", ("B", 1))
GLOBAL, BIAS = ("global_cond", ("B", 2)), ("bias", ("B", 1, 1))
SMALL: dict[str, Any] = {"solver": "ddim", "steps": 3}


def model(name: str, nodes: list[Any], inputs: Any, outputs: Any, **constants: Any) -> bytes:
    """A serialised graph of float32 tensors."""
    values = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in side] for side in (inputs, outputs)]
    weights = [onnx.numpy_helper.from_array(np.array(value), key) for key, value in constants.items()]
    graph = helper.make_graph(nodes, name, *values, weights)
    data: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    ).SerializeToString()
    return data


def denoiser(*conditions: Any) -> tuple[bytes, Any, Any]:
    """prediction = x / 10 + t / 1000 + all the conditions, spread over the last axis."""
    nodes = [helper.make_node("Mul", ["x", "tenth"], ["h0"]), helper.make_node("Unsqueeze", ["t", "axes"], ["t3"])]
    nodes += [helper.make_node("Mul", ["t3", "thousandth"], ["dt"]), helper.make_node("Add", ["h0", "dt"], ["h1"])]
    last = "h1"
    for name, shape in conditions:
        wide = name
        if len(shape) == 2:
            wide = f"{name}_wide"
            nodes.append(helper.make_node("Unsqueeze", [name, "last"], [wide]))
        nodes.append(helper.make_node("Add", [last, wide], [f"h_{name}"]))
        last = f"h_{name}"
    nodes.append(helper.make_node("Identity", [last], ["prediction"]))
    inputs, outputs = [("x", ("B", *SHAPE)), ("t", ("B",)), *conditions], [("prediction", ("B", *SHAPE))]
    tenth, thousandth = np.float32(0.1), np.float32(0.001)
    data = model("denoiser", nodes, inputs, outputs, tenth=tenth, thousandth=thousandth, axes=[1, 2], last=[2])
    return data, inputs, outputs


def encoder(*, output: Any = GLOBAL) -> tuple[bytes, Any, Any]:
    """global_cond = mean of the observations * gain."""
    nodes = [
        helper.make_node("ReduceMean", ["observation", "axis"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "gain"], [output[0]]),
    ]
    return model("encoder", nodes, [OBSERVATION, GAIN], [output], axis=[1]), [OBSERVATION, GAIN], [output]


def record(role: str, graph: tuple[bytes, Any, Any]) -> tuple[b.ModelFile, bytes]:
    inputs, outputs = (tuple(b.TensorSpec(n, s, "float32") for n, s in side) for side in graph[1:])
    return b.ModelFile(f"{role}.fp32.onnx", role, "fp32", "onnx", 18, inputs, outputs), graph[0]


def write(out: Path, conditions: Any, *graphs: tuple[b.ModelFile, bytes]) -> Path:
    manifest = b.Manifest(
        model=b.ModelInfo("toy", "1", "Apache-2.0", {}),
        sample_shape=SHAPE,
        output=b.OutputAffine((1.0,), (0.0,), "m/s"),
        prediction="eps",
        variance="small",
        schedule=NoiseSchedule.linear(20, 1e-3, 0.2),
        clip=None,
        conditions=tuple(b.Condition(name, shape[1:], "float32") for name, shape in conditions),
        defaults=b.Defaults("ddim", 3, "trailing"),
        network=None,
        files=tuple(file for file, _ in graphs),
        reference=None,
    )
    b.write_bundle(out, manifest, {file.path: data for file, data in graphs})
    return out


@pytest.fixture(scope="module")
def encoded_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("encoded") / "bundle"
    return write(out, [GLOBAL], record("denoiser", denoiser(GLOBAL)), record("encoder", encoder()))


@pytest.fixture(scope="module")
def biased_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a second condition, which the encoder does not compute."""
    out = tmp_path_factory.mktemp("biased") / "bundle"
    return write(out, [GLOBAL, BIAS], record("denoiser", denoiser(GLOBAL, BIAS)), record("encoder", encoder()))


@pytest.fixture(scope="module")
def sampler(encoded_bundle: Path) -> Any:
    with Sampler.load(encoded_bundle, threads=1) as opened:
        yield opened


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The names of the feeds of every call of a graph."""
    seen: list[set[str]] = []
    plain = OnnxRuntimeBackend.run
    monkeypatch.setattr(OnnxRuntimeBackend, "run", lambda self, feeds: seen.append(set(feeds)) or plain(self, feeds))
    return seen


def raw(n: int | None = None) -> dict[str, Any]:
    lead = () if n is None else (n,)
    rng = np.random.default_rng(0)
    return {"observation": rng.standard_normal((*lead, 3, 2)), "gain": rng.uniform(1, 2, (*lead, 1))}


def encoded(given: dict[str, Any]) -> Any:
    return (np.asarray(given["observation"]).mean(axis=-2) * given["gain"]).astype(np.float32)


@pytest.mark.parametrize("n", [None, 1, 5])
def test_encode_gives_what_the_graph_computes_with_a_batch_axis_if_an_input_has_one(sampler: Sampler, n: Any) -> None:
    found = sampler.encode(raw(n))
    assert list(found) == ["global_cond"]
    assert found["global_cond"].dtype == np.float32
    np.testing.assert_allclose(found["global_cond"], encoded(raw(n)), rtol=1e-5, atol=1e-6)


def test_an_input_without_a_batch_axis_serves_all_the_others(sampler: Sampler) -> None:
    given = {"observation": raw(4)["observation"], "gain": np.array([3.0])}
    np.testing.assert_allclose(sampler.encode(given)["global_cond"], encoded(given), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [None, 5])
def test_sampling_from_raw_inputs_equals_sampling_from_the_condition_itself(sampler: Sampler, n: Any) -> None:
    found = sampler.sample(5, condition=raw(n), batch_size=2, **SMALL)
    np.testing.assert_array_equal(found, sampler.sample(5, condition=sampler.encode(raw(n)), **SMALL))
    np.testing.assert_array_equal(found, list(sampler.stream(5, condition=raw(n), **SMALL))[-1].x)
    assert np.abs(found - sampler.sample(5, condition={"global_cond": [0.0, 0.0]}, **SMALL)).max() > 0.1


def test_the_encoder_runs_once_however_many_steps_and_batches(sampler: Sampler, calls: list[set[str]]) -> None:
    sampler.sample(7, condition=raw(7), solver="ddim", steps=4, batch_size=2)
    assert calls == [{"observation", "gain"}] + [{"x", "t", "global_cond"}] * 16


def test_a_given_condition_leaves_the_encoder_alone(sampler: Sampler, calls: list[set[str]]) -> None:
    sampler.sample(1, condition={"global_cond": [1.0, 2.0]}, **SMALL)
    assert calls == [{"x", "t", "global_cond"}] * 3


def test_conditions_that_are_not_encoded_go_beside_the_raw_inputs(biased_bundle: Path) -> None:
    with Sampler.load(biased_bundle, threads=1) as opened:
        bias = np.full((3, 1, 1), 0.5, np.float32)
        found = opened.sample(3, condition={**raw(3), "bias": bias}, **SMALL)
        direct = {**opened.encode(raw(3)), "bias": bias}
        np.testing.assert_array_equal(found, opened.sample(3, condition=direct, **SMALL))
        with pytest.raises(ValueError, match=r"expected bias, gain, observation, .* or bias, global_cond"):
            opened.sample(3, condition=raw(3), **SMALL)


@pytest.mark.parametrize(
    "given",
    [{}, {"observation": 1.0}, {**raw(), "global_cond": [1.0, 2.0]}, {"global_cond": [1.0, 2.0], "gain": [1.0]}],
    ids=["none", "half", "both", "mixture"],
)
def test_a_mixture_is_refused_and_both_choices_are_named(sampler: Sampler, given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"condition: got .* expected gain, observation, .* or global_cond"):
        sampler.sample(1, condition=given, **SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation": np.zeros((2, 3, 2))}, "condition 'observation': got a batch of 2, expected 3"),
        ({"observation": np.zeros((3, 3, 5))}, r"condition 'observation': got shape \(3, 3, 5\), expected \(n, 3, 2\)"),
        ({"observation": np.zeros((0, 3, 2))}, "condition 'observation': got shape"),
        ({"observation": np.zeros(2)}, "condition 'observation': got shape"),
        ({"gain": "loud"}, "condition 'gain': got <U4, expected float32"),
    ],
    ids=["batch", "axis", "empty", "rank", "dtype"],
)
def test_raw_inputs_that_do_not_fit_are_refused_by_name(sampler: Sampler, change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler.sample(3, condition={**raw(3), **change}, **SMALL)


def test_encode_names_its_inputs_and_a_bundle_without_encoder_says_so(sampler: Sampler, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="encode: got image, expected gain, observation"):
        sampler.encode({"image": 1.0})
    bare = write(tmp_path / "bare", [GLOBAL], record("denoiser", denoiser(GLOBAL)))
    with Sampler.load(bare, threads=1) as opened:
        with pytest.raises(ValueError, match="no encoder; its conditions are global_cond"):
            opened.encode(raw())
        with pytest.raises(ValueError, match="condition: got gain, observation, expected global_cond"):
            opened.sample(1, condition=raw(), **SMALL)


def test_many_threads_may_encode_at_once(sampler: Sampler) -> None:
    def draw(seed: int) -> Any:
        return sampler.sample(2, condition={"observation": np.full((3, 2), seed), "gain": [1.0]}, seed=seed, **SMALL)

    expected = [draw(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        np.testing.assert_array_equal(list(pool.map(draw, range(8))), expected)


def test_warm_up_and_close_reach_the_encoder(encoded_bundle: Path, calls: list[set[str]]) -> None:
    with Sampler.load(encoded_bundle, threads=1, warmup=True) as opened:
        assert sorted(map(sorted, calls)) == [["gain", "observation"], ["global_cond", "t", "x"]]
    with pytest.raises(BackendError, match="closed"):
        opened.encode(raw())


def test_openvino_runs_the_encoder_itself(encoded_bundle: Path, sampler: Sampler) -> None:
    pytest.importorskip("openvino", reason="the other runtime")
    with Sampler.load(encoded_bundle, backend="openvino", threads=1) as opened:
        assert opened.encoder is not None
        assert opened.encoder.backend.name == "openvino"
        found = opened.sample(3, condition=raw(3), **SMALL)
    np.testing.assert_allclose(found, sampler.sample(3, condition=raw(3), **SMALL), rtol=0, atol=1e-5)


def test_beside_torch_the_encoder_runs_on_onnx_runtime(encoded_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ddpm_deploy.encoder import open_encoder

    opened = open_encoder(b.read_bundle(encoded_bundle), backend="torch", device="cuda", threads=1)
    assert opened is not None
    assert (opened.backend.name, opened.backend.device) == ("onnxruntime", "cpu")
    opened.close()
    monkeypatch.delitem(sys.modules, "ddpm_deploy.backends.onnxruntime")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendUnavailable, match=r"encoder, which onnxruntime is to run: .*pip install"):
        open_encoder(b.read_bundle(encoded_bundle), backend="torch", device="cpu", threads=1)


def test_an_encoder_that_fits_no_condition_is_refused_before_any_runtime_sees_it(tmp_path: Path) -> None:
    good = record("denoiser", denoiser(GLOBAL))
    named, bytes_named = record("encoder", encoder(output=("embedding", ("B", 2))))
    wide, bytes_wide = record("encoder", encoder())
    wide = replace(wide, outputs=(b.TensorSpec("global_cond", ("B", 7), "float32"),))
    fixed = replace(wide, inputs=(b.TensorSpec("observation", (1, 3, 2), "float32"),))
    for i, (file, data, message) in enumerate(
        [
            (named, bytes_named, r"output embedding float32\[B, 2\]: expected .* global_cond float32\[B, 2\]"),
            (wide, bytes_wide, r"output global_cond float32\[B, 7\]"),
            (fixed, bytes_wide, "observation: got .* expected a free batch axis"),
            (replace(wide, outputs=()), bytes_wide, "without inputs or outputs"),
        ]
    ):
        out = write(tmp_path / str(i), [GLOBAL], good, (file, data))
        with pytest.raises(BundleError, match=f"encoder.fp32.onnx: .*{message}"):
            Sampler.load(out, threads=1)


def test_a_sampler_that_cannot_have_its_encoder_leaves_no_backend_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []
    plain = OnnxRuntimeBackend.close
    monkeypatch.setattr(OnnxRuntimeBackend, "close", lambda self: closed.append(self) or plain(self))
    file, _ = record("encoder", encoder())
    out = write(tmp_path / "broken", [GLOBAL], record("denoiser", denoiser(GLOBAL)), (file, b"no graph"))
    with pytest.raises(BackendError, match="onnxruntime"):
        Sampler.load(out, threads=1)
    assert len(closed) == 1
