"""The user's own ONNX file under our names: the same numbers, or a refusal that says why."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddpm_deploy.bundle import Condition
from ddpm_deploy.errors import ExportError
from ddpm_deploy.export.sources import Settings, Source, open_source

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from ddpm_deploy.export.anatomy import opset_of  # noqa: E402

SAID: dict[str, Any] = {
    "schedule": {"kind": "linear", "T": 50},
    "prediction": "eps",
    "output": {"scale": 127.5, "offset": 127.5, "units": "8-bit"},
}
WEIGHTS = np.random.default_rng(0).standard_normal((3, 3, 1, 1)).astype(np.float32)
NAMES = {"x": "sample", "t": "timestep", "out": "out_sample"}


def tiny(
    *,
    x: Any = ("N", 3, 4, 4),
    t: Any = ("N",),
    t_type: int = TensorProto.FLOAT,
    x_type: int = TensorProto.FLOAT,
    opset: int = 17,
    names: dict[str, str] | None = None,
    out: Any = ("N", 3, 4, 4),
    label: Any = None,
    weights: np.ndarray = WEIGHTS,
) -> onnx.ModelProto:
    """A network: conv(x) + t (+ label), one number of time for each sample."""
    names = NAMES | (names or {})
    float_type = helper.tensor_dtype_to_np_dtype(x_type)
    nodes = [
        helper.make_node("Cast", [names["t"]], ["time"], to=x_type),
        helper.make_node("Reshape", ["time", "column"], ["time_column"]),
        helper.make_node("Conv", [names["x"], "weights"], ["convolved"]),
        helper.make_node("Add", ["convolved", "time_column"], ["sum" if label is not None else names["out"]]),
    ]
    inputs = [
        helper.make_tensor_value_info(names["x"], x_type, x),
        helper.make_tensor_value_info(names["t"], t_type, t),
    ]
    if label is not None:
        nodes += [
            helper.make_node("Cast", ["class labels"], ["label_float"], to=x_type),
            helper.make_node("Reshape", ["label_float", "column"], ["label_column"]),
            helper.make_node("Add", ["sum", "label_column"], [names["out"]]),
        ]
        inputs.append(helper.make_tensor_value_info("class labels", TensorProto.INT64, label))
    graph = helper.make_graph(
        nodes,
        "tiny",
        inputs,
        [helper.make_tensor_value_info(names["out"], x_type, out)],
        [
            numpy_helper.from_array(weights.astype(float_type), "weights"),
            numpy_helper.from_array(np.array([-1, 1, 1, 1], np.int64), "column"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def read(model: onnx.ModelProto, folder: Path, **said: Any) -> Source:
    path = folder / "tiny.onnx"
    path.write_bytes(model.SerializeToString())
    return open_source(str(path), Settings(**{**SAID, **said}))


def run(graph: onnx.ModelProto, **feeds: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (output,) = session.run(["prediction"], feeds)
    return output


def conv(x: np.ndarray) -> np.ndarray:
    return np.einsum("oi,bihw->bohw", WEIGHTS[:, :, 0, 0], x)


def noisy(batch: int = 3) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(1).standard_normal((batch, 3, 4, 4)).astype(np.float32)
    return x, np.linspace(0.4, 30.6, batch).astype(np.float32)


def inputs_of(graph: onnx.ModelProto) -> dict[str, list[int | str]]:
    return {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in graph.graph.input
    }


# -- the same numbers under our names ---------------------------------------------------------------------------------


def test_names_and_shapes_become_ours_and_the_numbers_stay(tmp_path: Path) -> None:
    source = read(tiny(), tmp_path)
    assert inputs_of(source.graph) == {"x": ["B", 3, 4, 4], "t": ["B"]}
    x, t = noisy()
    np.testing.assert_allclose(run(source.graph, x=x, t=t), conv(x) + t[:, None, None, None], rtol=1e-5, atol=1e-5)
    assert (source.sample_shape, source.variance, source.clip, source.network) == ((3, 4, 4), "small", None, None)
    assert (source.name, source.provenance["opset"]) == ("tiny", 18)
    assert "integer_timestep" not in source.provenance


@pytest.mark.parametrize(
    "names",
    [
        {"x": "t", "t": "x"},
        {"x": "prediction", "out": "x"},
        {"out": "t", "t": "prediction", "x": "in"},
        {"x": "x__1", "t": "t__1"},
    ],
    ids=str,
)
def test_names_that_clash_with_ours_are_untangled(tmp_path: Path, names: dict[str, str]) -> None:
    names = NAMES | names
    source = read(tiny(names=names), tmp_path, x_name=names["x"], t_name=names["t"])
    x, t = noisy()
    np.testing.assert_allclose(run(source.graph, x=x, t=t), conv(x) + t[:, None, None, None], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("t_type", [TensorProto.INT64, TensorProto.INT32])
def test_a_whole_number_time_is_rounded_and_that_is_noted(tmp_path: Path, t_type: int) -> None:
    source = read(tiny(t_type=t_type), tmp_path)
    assert source.provenance["integer_timestep"] is True
    x, t = noisy()
    expected = conv(x) + np.round(t)[:, None, None, None]
    np.testing.assert_allclose(run(source.graph, x=x, t=t), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("t_type", [TensorProto.FLOAT, TensorProto.INT64])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_one_time_for_the_batch_is_refused_unless_allowed(tmp_path: Path, shape: tuple[int, ...], t_type: int) -> None:
    model = tiny(t=shape, t_type=t_type)
    with pytest.raises(ExportError, match=r"timestep: is one time for the whole batch.*--allow-scalar-timestep"):
        read(model, tmp_path)
    source = read(model, tmp_path, allow_scalar_timestep=True)
    assert source.provenance["scalar_timestep"] is True
    assert inputs_of(source.graph)["t"] == ["B"]
    x, _ = noisy()
    np.testing.assert_allclose(run(source.graph, x=x, t=np.full(3, 7, np.float32)), conv(x) + 7, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("t_type", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.FLOAT])
def test_another_float_type_gets_float32_at_its_edges(tmp_path: Path, t_type: int) -> None:
    source = read(tiny(x_type=TensorProto.FLOAT16, t_type=t_type), tmp_path)
    x, t = noisy()
    got = run(source.graph, x=x, t=t)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, conv(x) + t[:, None, None, None], rtol=2e-2, atol=2e-2)


def test_other_inputs_become_conditions(tmp_path: Path) -> None:
    source = read(tiny(label=("N",)), tmp_path, x_name="sample", t_name="timestep")
    assert source.conditions == (Condition("class_labels", (), "int64"),)
    x, t = noisy()
    got = run(source.graph, x=x, t=t, class_labels=np.arange(3))
    np.testing.assert_allclose(got, conv(x) + (t + np.arange(3))[:, None, None, None], rtol=1e-5, atol=1e-5)
    classes = [{"name": "class_labels", "dtype": "int64", "classes": ["a", "b", "c"]}]
    source = read(tiny(label=("N",)), tmp_path, x_name="sample", t_name="timestep", conditions=classes)
    assert source.conditions[0].classes == ("a", "b", "c")


def test_free_sides_take_the_shape_that_is_said(tmp_path: Path) -> None:
    model = tiny(x=("N", 3, "H", "W"), out=("N", 3, "H", "W"))
    with pytest.raises(ExportError, match="give sample_shape"):
        read(model, tmp_path)
    source = read(model, tmp_path, sample_shape=(3, 4, 4))
    assert inputs_of(source.graph)["x"] == ["B", 3, 4, 4]
    with pytest.raises(ExportError, match=r"sample_shape: got \(1, 4, 4\)"):
        read(model, tmp_path, sample_shape=(1, 4, 4))


def test_twice_the_channels_are_a_learned_variance(tmp_path: Path) -> None:
    model = tiny(weights=np.concatenate([WEIGHTS, WEIGHTS]), out=("N", 6, 4, 4))
    assert read(model, tmp_path).variance == "learned"
    with pytest.raises(ExportError, match="6 channels, expected 3"):
        read(model, tmp_path, variance="small")


def test_one_of_several_outputs_is_chosen_by_name(tmp_path: Path) -> None:
    model = tiny()
    model.graph.output.append(helper.make_tensor_value_info("convolved", TensorProto.FLOAT, ("N", 3, 4, 4)))
    with pytest.raises(ExportError, match=r"out_sample, convolved could be; give output_name"):
        read(model, tmp_path)
    x, t = noisy()
    source = read(model, tmp_path, output_name="convolved")
    np.testing.assert_allclose(run(source.graph, x=x, t=t), conv(x), rtol=1e-5, atol=1e-5)


def test_names_inside_subgraphs_follow(tmp_path: Path) -> None:
    body = helper.make_graph(
        [helper.make_node("Add", ["sample", "inner"], ["x"])],
        "body",
        [],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.float32(2.0), "inner")],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["sample"], ["t"])],
        "other",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("ReduceMax", ["timestep"], ["largest"], keepdims=0),
        helper.make_node("Cast", ["largest"], ["flag"], to=TensorProto.BOOL),
        helper.make_node("If", ["flag"], ["out_sample"], then_branch=body, else_branch=other),
    ]
    model = tiny()
    del model.graph.node[:]
    del model.graph.initializer[:]
    model.graph.node.extend(nodes)
    source = read(model, tmp_path)
    x, t = noisy()
    np.testing.assert_allclose(run(source.graph, x=x, t=t), x + 2, rtol=1e-6)
    np.testing.assert_allclose(run(source.graph, x=x, t=0 * t), x, rtol=1e-6)


@pytest.mark.parametrize("opset", [9, 11, 13, 17])
def test_an_old_opset_is_brought_up(tmp_path: Path, opset: int) -> None:
    source = read(tiny(opset=opset), tmp_path)
    assert source.provenance["opset"] == 18
    x, t = noisy()
    np.testing.assert_allclose(run(source.graph, x=x, t=t), conv(x) + t[:, None, None, None], rtol=1e-5, atol=1e-5)


def test_the_long_name_of_the_standard_operators_is_taken_too(tmp_path: Path) -> None:
    model = tiny(opset=18)
    model.opset_import[0].domain = model.graph.node[0].domain = "ai.onnx"
    source = read(model, tmp_path)
    assert opset_of(source.graph) == 18
    x, t = noisy()
    np.testing.assert_allclose(run(source.graph, x=x, t=t), conv(x) + t[:, None, None, None], rtol=1e-5, atol=1e-5)


def test_functions_are_inlined(tmp_path: Path) -> None:
    model = tiny()
    model.graph.node[3].op_type, model.graph.node[3].domain = "MyAdd", "mine"
    body = [helper.make_node("Add", ["a", "b"], ["c"])]
    model.functions.append(
        helper.make_function("mine", "MyAdd", ["a", "b"], ["c"], body, [helper.make_opsetid("", 17)])
    )
    model.opset_import.append(helper.make_opsetid("mine", 1))
    source = read(model, tmp_path)
    assert not source.graph.functions
    x, t = noisy()
    np.testing.assert_allclose(run(source.graph, x=x, t=t), conv(x) + t[:, None, None, None], rtol=1e-5, atol=1e-5)


def test_notes_of_the_machine_that_wrote_the_file_are_left_out(tmp_path: Path) -> None:
    model = tiny()
    model.doc_string = model.graph.node[0].doc_string = "/home/someone/secret.py"
    model.metadata_props.add(key="path", value="/home/someone")
    source = read(model, tmp_path)
    assert b"/home/someone" not in source.graph.SerializeToString()


# -- what is refused, and why -----------------------------------------------------------------------------------------


def test_what_an_onnx_file_does_not_say_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "tiny.onnx"
    path.write_bytes(tiny().SerializeToString())
    with pytest.raises(ExportError, match="does not say schedule, prediction, output; give them"):
        open_source(str(path))


@pytest.mark.parametrize(
    ("options", "said", "message"),
    [
        ({"x": (1, 3, 4, 4)}, {}, "sample: its batch is fixed to 1"),
        ({"out": (2, 3, 4, 4)}, {}, "out_sample: its batch is fixed to 2"),
        ({"out": ("N", 3, 4, 5)}, {}, "out_sample: got shape"),
        ({}, {"x_name": "nothing"}, "x_name: got 'nothing', expected one of sample, timestep"),
        ({}, {"x_name": "timestep", "t_name": "sample"}, "expected one number for each sample"),
        ({}, {"output_name": "sample"}, "output_name: got 'sample'"),
        ({"x_type": TensorProto.INT64}, {"x_name": "sample"}, "sample: got int64"),
        ({"t_type": TensorProto.BOOL}, {}, "timestep: got bool"),
        ({"label": ("N",)}, {}, "which input is the time\\? timestep, class labels could be; give t_name"),
        ({"label": (3,), "opset": 18}, {"t_name": "timestep"}, "class labels: got shape"),
        ({"opset": 26}, {}, "opset: got 26, expected at most 25"),
        ({}, {"sample_shape": (3, 8, 8)}, "sample_shape: got"),
        ({}, {"step": 3}, "step: of no use to an ONNX file"),
        ({}, {"weights": "w.safetensors"}, "weights: of no use"),
        ({}, {"conditions": [{"name": "y", "dtype": "float32"}]}, "conditions: got 1 of them"),
    ],
)
def test_a_graph_that_does_not_fit_is_refused(
    tmp_path: Path, options: dict[str, Any], said: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        read(tiny(**options), tmp_path, **said)


def test_nan_weights_are_refused_by_name(tmp_path: Path) -> None:
    weights = WEIGHTS.copy()
    weights[1, 1] = np.nan
    with pytest.raises(ExportError, match="weights: holds NaN"):
        read(tiny(weights=weights), tmp_path)


def test_an_invalid_graph_is_refused_by_the_checker(tmp_path: Path) -> None:
    model = tiny()
    model.graph.node[2].input[1] = "nowhere"
    with pytest.raises(ExportError, match="checker refuses it"):
        read(model, tmp_path)


@pytest.mark.parametrize("dims", [[2**40], [2**31, 2**31], [-1], [3, 3, 1, 2]])
def test_a_shape_that_the_data_does_not_fill_is_refused(tmp_path: Path, dims: list[int]) -> None:
    model = tiny()
    model.graph.initializer[0].dims[:] = dims
    with pytest.raises(ExportError, match=r"weights: (its data does not fill|got shape)"):
        read(model, tmp_path)


# -- weights in other files -------------------------------------------------------------------------------------------


def external(folder: Path, location: str = "tiny.data", **entries: int | str) -> onnx.ModelProto:
    """The tiny network with its weights in a file beside it, which lies at 16 bytes of `tiny.data`."""
    model = tiny()
    tensor = model.graph.initializer[0]
    data = tensor.raw_data
    (folder / "tiny.data").write_bytes(b"\0" * 16 + data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": 16, "length": len(data), **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return model


def test_weights_beside_the_file_are_brought_inside(tmp_path: Path) -> None:
    source = read(external(tmp_path), tmp_path)
    x, t = noisy()
    np.testing.assert_allclose(run(source.graph, x=x, t=t), conv(x) + t[:, None, None, None], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "entries",
    [
        {"location": "../tiny.data"},
        {"location": "/etc/passwd"},
        {"location": "sub/../tiny.data"},
        {"location": "sub\\tiny.data"},
        {"location": ""},
        {"location": "."},
        {"location": "missing.data"},
        {"offset": 17},
        {"offset": -1},
        {"offset": 2**60},
        {"offset": "0x10"},
        {"offset": " 16"},
        {"length": 35},
        {"length": 2**40},
        {"length": -36},
        {"length": "36 "},
        {"surprise": 1},
    ],
    ids=str,
)
def test_external_data_that_leaves_its_bounds_is_refused(tmp_path: Path, entries: dict[str, Any]) -> None:
    (tmp_path / "models" / "sub").mkdir(parents=True)
    (tmp_path / "tiny.data").write_bytes(b"\0" * 52)
    with pytest.raises(ExportError, match="external data"):
        read(external(tmp_path / "models", **entries), tmp_path / "models")


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_as_external_data_is_refused(tmp_path: Path, link: Any) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    model = external(folder)
    (folder / "tiny.data").rename(tmp_path / "elsewhere")
    link(tmp_path / "elsewhere", folder / "tiny.data")
    with pytest.raises(ExportError, match=r"external data: tiny\.data"):
        read(model, folder)


def test_a_folder_as_external_data_is_refused(tmp_path: Path) -> None:
    model = external(tmp_path)
    (tmp_path / "tiny.data").unlink()
    (tmp_path / "tiny.data").mkdir()
    with pytest.raises(ExportError, match="external data"):
        read(model, tmp_path)


# -- damage -----------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_gives_a_source_or_a_named_refusal(tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(tiny(label=("N",)).SerializeToString())
    if data.draw(st.booleans()):
        whole = whole[: data.draw(st.integers(0, len(whole)))]
    for _ in range(data.draw(st.integers(0, 4))):
        if whole:
            whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.onnx"
    path.write_bytes(bytes(whole))
    with contextlib.suppress(ExportError):
        source = open_source(str(path), Settings(**SAID, t_name="timestep", x_name="sample"))
        onnx.checker.check_model(source.graph)
