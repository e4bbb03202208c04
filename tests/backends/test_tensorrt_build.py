"""TensorRT-RTX builds real engines of our graphs, on machines with no GPU too."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddpm_deploy.backends.tensorrt import Adapter, BuildSettings, build_engine, find_gpu
from ddpm_deploy.backends.tensorrt.network import layer_types, parse
from ddpm_deploy.backends.tensorrt.profiles import make_profiles, relevant
from ddpm_deploy.backends.tensorrt.settings import ABSENT, CAPABILITIES
from ddpm_deploy.bundle import Bundle, TensorSpec, default_bundle, read_bundle
from ddpm_deploy.errors import BackendError, BackendUnavailable

SHAPE = (1, 8, 8)
X, T = TensorSpec("x", ("B", *SHAPE), "float32"), TensorSpec("t", ("B",), "float32")
EDGES = 2  # the first and the last convolution stay in float32


@pytest.fixture(scope="module")
def digits() -> Bundle:
    return read_bundle(default_bundle())


@pytest.fixture(scope="module")
def model(digits: Bundle) -> bytes:
    return digits.open_bytes(digits.file("denoiser", "fp32"))


def one_convolution(output_channels: int = 1, operator: str = "Conv") -> bytes:
    """y = conv(x) * t, written by hand."""
    from onnx import TensorProto, helper, numpy_helper

    weights = np.ones((output_channels, 1, 3, 3), np.float32)
    nodes = [
        helper.make_node(operator, ["x", "w"], ["c"], "the_node", **({"pads": [1] * 4} if operator == "Conv" else {})),
        helper.make_node("Unsqueeze", ["t", "axes"], ["t4"]),
        helper.make_node("Mul", ["c", "t4"], ["prediction"]),
    ]
    constants = [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.array([1, 2, 3]), "axes")]
    values = [helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, spec.shape) for spec in (X, T)]
    out = helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["B", output_channels, 8, 8])
    graph = helper.make_graph(nodes, "one", values, [out], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(made.SerializeToString())


# -- every graph in every precision -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def denoisers(model: bytes) -> dict[str, Any]:
    """The shipped denoiser in every precision."""
    onnx = pytest.importorskip("onnx")
    from ddpm_deploy.export.half import to_half
    from ddpm_deploy.export.quantise import quantise
    from ddpm_deploy.export.targets import TENSORRT_INT8

    graph = onnx.load_from_string(model)
    rng = np.random.default_rng(0)
    labels = {"labels": np.array([3, 10])} if "labels" in [value.name for value in graph.graph.input] else {}
    feeds = [{"x": rng.standard_normal((2, *SHAPE), np.float32), "t": np.array([3, 500], np.float32), **labels}]
    halves = {precision: to_half(graph, precision) for precision in ("fp16", "bf16")}
    return {"fp32": graph, **halves, "int8": quantise(graph, feeds, form=TENSORRT_INT8)}


def graph_of(
    role: str, denoiser: Any, target: str = "tensorrt", **options: Any
) -> tuple[bytes, tuple[TensorSpec, ...]]:
    """The graph of a role around a denoiser, and its inputs."""
    from ddpm_deploy.export.sampler_graph import build_sampler
    from ddpm_deploy.export.step import build_step

    inputs = tuple(spec_of(value) for value in denoiser.graph.input)
    arguments: dict[str, Any] = {"inputs": inputs, "sample_shape": SHAPE, "learned_variance": False, "target": target}
    arguments |= options
    if role == "step":
        made = build_step(denoiser, **arguments, state_size=5)
    elif role == "sampler":
        made = build_sampler(denoiser, **arguments, default_plan=None)
    else:
        made = denoiser
    return made.SerializeToString(), tuple(spec_of(value) for value in made.graph.input)


def spec_of(value: Any) -> TensorSpec:
    axes = value.type.tensor_type.shape.dim
    dtype = "int64" if value.name == "labels" else "float32"
    return TensorSpec(value.name, tuple(axis.dim_param or axis.dim_value for axis in axes), dtype)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("role", ["denoiser", "step", "sampler"])
def test_every_graph_builds_in_every_precision(
    rtx: Adapter, denoisers: dict[str, Any], role: str, precision: str
) -> None:
    graph, inputs = graph_of(role, denoisers[precision])
    built = build_engine(rtx, graph, inputs, BuildSettings(batches=(2,)), precision=precision)
    convolutions = sum(node.op_type == "Conv" for node in denoisers["fp32"].graph.node)
    expected = {"fp32": convolutions} if precision == "fp32" else {precision: convolutions - EDGES, "fp32": EDGES}
    assert built.layers["convolution"] == expected
    assert ("loop_output" in built.layers) == (role == "sampler")
    assert find_gpu() is not None or not built.inspected
    assert len(built.engine) > len(graph) / 2
    if precision != "fp32":
        with pytest.raises(BackendError, match="expected all in fp32; the file is no fp32 graph"):
            build_engine(rtx, graph, inputs, BuildSettings(), precision="fp32")


@pytest.mark.parametrize(("role", "target"), [("step", "tensorrt"), ("sampler", "tensorrt"), ("sampler", "onnx")])
def test_guided_graphs_build(rtx: Adapter, guided_bundle: Path, role: str, target: str) -> None:
    onnx = pytest.importorskip("onnx")
    bundle = read_bundle(guided_bundle)
    denoiser = onnx.load(guided_bundle / "denoiser.fp32.onnx")
    inputs = bundle.manifest.files[0].inputs
    graph, taken = graph_of(role, denoiser, target, inputs=inputs, sample_shape=(3, 8, 8), nulls={"labels": 3})
    assert "guidance" in [spec.name for spec in taken]
    settings = BuildSettings(batches=(2,), rows=(1, 4, 20), state_size=(1, 2, 5))
    built = build_engine(rtx, graph, taken, settings, precision="fp32")
    assert ("loop_output" in built.layers) == (role == "sampler")
    (profile,) = built.profiles
    each = {"step": ((1,), (2,), (2,)), "tensorrt": ((1, 1), (4, 2), (20, 2)), "onnx": ((1, 1), (4, 2), (20, 2))}
    assert profile["guidance"] == each[role if role == "step" else target]


def test_portable_sampler_with_a_free_state_builds_too(rtx: Adapter, denoisers: dict[str, Any]) -> None:
    graph, inputs = graph_of("sampler", denoisers["fp32"], "onnx")
    settings = BuildSettings(batches=(2,), rows=(1, 4, 20), state_size=(1, 2, 5))
    (profile,) = make_profiles(inputs, settings)
    assert profile["update"] == ((1, 1, 4), (4, 2, 5), (20, 5, 8))
    assert profile["noise"] == ((1, 1, 1, 1, 1), (4, 2, 1, 8, 8), (20, 2, 1, 8, 8))
    assert build_engine(rtx, graph, inputs, settings, precision="fp32").profiles == (profile,)


def test_fp32_graph_is_refused_where_fp16_was_asked(rtx: Adapter, model: bytes, digits: Bundle) -> None:
    with pytest.raises(
        BackendError, match=r"tensorrt-rtx [\d.]+: .* got \d+ in fp32, expected some in fp16; .* export it"
    ):
        build_engine(rtx, model, digits.file("denoiser", "fp32").inputs, BuildSettings(), precision="fp16")


# -- profiles ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batches", "ranges"),
    [
        ((1,), [(1, 1, 1)]),
        ((8,), [(1, 8, 8)]),
        ((1, 4, 8), [(1, 1, 1), (2, 4, 4), (5, 8, 8)]),
    ],
)
def test_profiles_cover_every_batch_once_and_are_tuned_for_the_buckets(batches: Any, ranges: Any) -> None:
    profiles = make_profiles((X, T), BuildSettings(batches=batches))
    assert [tuple(shape[0] for shape in profile["t"]) for profile in profiles] == ranges
    assert [tuple(math.prod(shape) // 64 for shape in profile["x"]) for profile in profiles] == ranges
    covered = [batch for least, _, most in ranges for batch in range(least, most + 1)]
    assert covered == list(range(1, batches[-1] + 1))


def test_several_profiles_go_into_one_engine(rtx: Adapter) -> None:
    one = build_engine(rtx, one_convolution(), (X, T), BuildSettings(), precision="fp32")
    three = build_engine(rtx, one_convolution(), (X, T), BuildSettings(batches=(1, 4, 8)), precision="fp32")
    assert len(three.profiles) == 3
    assert len(three.engine) > len(one.engine)


def test_free_axis_without_sizes_is_named() -> None:
    wide = TensorSpec("x", ("B", 1, "H", "W"), "float32")
    with pytest.raises(ValueError, match="got nothing for the free axis W of input 'x'"):
        make_profiles((wide, T), BuildSettings(axes=(("H", (8, 16, 32)),)))
    (profile,) = make_profiles((wide, T), BuildSettings(axes=(("H", (8, 16, 32)), ("W", (8, 8, 8)))))
    assert profile["x"] == ((1, 1, 8, 8), (1, 1, 16, 8), (1, 1, 32, 8))


def test_sizes_of_axes_that_a_graph_lacks_do_not_tell_its_engines_apart() -> None:
    asked = BuildSettings(batches=(4,), rows=(1, 2, 3), axes=(("H", (8, 8, 8)),))
    assert relevant((X, T), asked) == BuildSettings(batches=(4,))
    assert relevant((TensorSpec("t", ("N",), "float32"),), asked).rows == (1, 2, 3)


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batches": ()}, r"batches: got \[\]"),
        ({"batches": (0,)}, "batches: got 0"),
        ({"batches": (4, 1)}, r"batches: got \[4, 1\], expected 1 to 16 sizes, each larger than the last"),
        ({"rows": (5, 2, 9)}, "rows: got .* expected least <= tuned for <= most"),
        ({"rows": (1, 2)}, "rows: got .* expected three whole numbers"),
        ({"axes": (("B", (1, 1, 1)),)}, "axes: got 'B'"),
        ({"optimization_level": 6}, r"optimization_level: got 6, expected a whole number in \[0, 5\]"),
        ({"workspace_bytes": 10}, "workspace_bytes: got 10"),
        ({"hardware_compatibility": "turing"}, "hardware_compatibility: got 'turing', expected some of none"),
        ({"compute_capabilities": ("9.0",)}, "compute_capabilities: got '9.0', expected some of 7.5"),
        ({"strip_weights": True, "refit": True}, "strip_weights, refit: got both"),
    ],
)
def test_bad_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BuildSettings(**settings)


VALUES = {
    "optimization_level": 3,
    "hardware_compatibility": "ampere_plus",
    "version_compatible": True,
    "timing_cache": True,
    "compute_capabilities": ("8.9",),
}


@pytest.mark.parametrize("name", ABSENT["tensorrt-rtx"])
def test_settings_that_rtx_does_not_have_are_refused_by_name(rtx: Adapter, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: tensorrt-rtx has no such setting: .*; leave it out"):
        build_engine(rtx, b"", (X, T), BuildSettings(**{name: VALUES[name]}), precision="fp32")


def test_rtx_engine_is_the_same_at_every_optimization_level(rtx: Adapter) -> None:
    """Why the setting is refused there."""

    def build(level: int | None) -> bytes:
        session = rtx.open()
        network, _parser = parse(session, one_convolution())
        config = session.builder.create_builder_config()
        profile = session.builder.create_optimization_profile()
        for name, shapes in make_profiles((X, T), BuildSettings())[0].items():
            profile.set_shape(name, *shapes)
        config.add_optimization_profile(profile)
        if level is not None:
            config.builder_optimization_level = level
        return bytes(session.builder.build_serialized_network(network, config))

    assert build(0) == build(None) == build(5)


def test_compute_capabilities_change_the_engine(rtx: Adapter) -> None:
    engines = {
        capabilities: build_engine(
            rtx, one_convolution(), (X, T), BuildSettings(compute_capabilities=capabilities), precision="fp32"
        ).engine
        for capabilities in ((), ("8.9",), ("8.6", "12.0"))
    }
    assert len(set(engines.values())) == len(engines)


def test_capabilities_are_those_of_the_package(rtx: Adapter) -> None:
    there = {name.removeprefix("SM") for name in rtx.api.ComputeCapability.__members__ if name.startswith("SM")}
    assert {capability.replace(".", "") for capability in CAPABILITIES} == there


def test_workspace_that_is_too_small_is_an_error_with_the_reason(rtx: Adapter, model: bytes, digits: Bundle) -> None:
    inputs = digits.file("denoiser", "fp32").inputs
    with pytest.raises(BackendError, match=r"the build failed: .*workspace limit.*; try other settings"):
        build_engine(rtx, model, inputs, BuildSettings(workspace_bytes=2**20), precision="fp32")


@pytest.mark.skipif(find_gpu() is not None, reason="with a GPU these builds work")
@pytest.mark.parametrize("settings", [BuildSettings(refit=True), BuildSettings(strip_weights=True)])
def test_refit_without_a_gpu_is_refused_in_one_sentence(rtx: Adapter, settings: BuildSettings) -> None:
    with pytest.raises(
        BackendUnavailable, match=r"refit and strip_weights need an NVIDIA GPU with its driver, also here"
    ):
        build_engine(rtx, one_convolution(), (X, T), settings, precision="fp32")


# -- graphs that are refused ------------------------------------------------------------------------------------------


def test_operator_that_is_not_known_is_named_with_its_node(rtx: Adapter) -> None:
    with pytest.raises(BackendError, match=r"cannot read the graph: node 'the_node' \(NoSuchThing\): ") as caught:
        build_engine(rtx, one_convolution(operator="NoSuchThing"), (X, T), BuildSettings(), precision="fp32")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["nothing", "garbage", "cut off"])
def test_bytes_that_are_no_graph_are_refused(rtx: Adapter, kind: str) -> None:
    graph = {"nothing": b"", "garbage": b"garbage", "cut off": one_convolution()[:-40]}[kind]
    with pytest.raises(BackendError, match=r"cannot load the model|cannot read the graph|does not fit its manifest"):
        build_engine(rtx, graph, (X, T), BuildSettings(), precision="fp32")


def test_weights_in_another_file_are_refused(rtx: Adapter) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load_from_string(one_convolution())
    tensor = graph.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    with pytest.raises(BackendError, match=r"tensor 'w' keeps its values in another file"):
        build_engine(rtx, graph.SerializeToString(), (X, T), BuildSettings(), precision="fp32")


def test_graph_that_does_not_fit_its_manifest_is_refused(rtx: Adapter) -> None:
    other = TensorSpec("x", ("B", 3, 8, 8), "float32")
    with pytest.raises(BackendError, match=r"inputs of the graph: received x float32\[free, 1, 8, 8\]"):
        build_engine(rtx, one_convolution(), (other, T), BuildSettings(), precision="fp32")


def test_layers_are_counted_by_kind_and_type(rtx: Adapter) -> None:
    session = rtx.open()
    network, _parser = parse(session, one_convolution())
    types = layer_types(network)
    assert types["convolution"] == {"fp32": 1}
    assert types["elementwise"] == {"fp32": 1}


def test_engine_of_one_batch_is_the_same_every_time(rtx: Adapter) -> None:
    engines = [build_engine(rtx, one_convolution(), (X, T), BuildSettings(), precision="fp32").engine for _ in range(2)]
    assert engines[0] == engines[1]
