"""Every parser on damaged and on made-up input: a sound result, or the package's own errors, and never anything else.

bundle.json, the ONNX metadata, plans, reference.npz, scheduler and network configurations, safetensors, checkpoints and
the engines' sidecars are fuzzed beside their other tests.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import hostile as h
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ddpm_deploy.arguments import array
from ddpm_deploy.backends.external import Weights, check_own_tensors, refuse_external_data
from ddpm_deploy.backends.onnxruntime import OnnxRuntimeBackend
from ddpm_deploy.bundle import read_bundle
from ddpm_deploy.errors import BackendError, BundleError, DdpmDeployError, ExportError
from ddpm_deploy.export import pbtxt
from ddpm_deploy.export.__main__ import main as export
from ddpm_deploy.export.onnx_signature import read_signature
from ddpm_deploy.export.recipe import make_recipe, parse_assignment, read_recipe, set_value
from ddpm_deploy.export.sources.base import Settings
from ddpm_deploy.export.sources.files import read_safetensors, read_weights
from ddpm_deploy.export.sources.open import open_source
from ddpm_deploy.protobuf import fields

MODEL = h.tiny_onnx().SerializeToString()
TEMPORARY = [HealthCheck.function_scoped_fixture]
quick = settings(max_examples=100, deadline=None, suppress_health_check=TEMPORARY)

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(["eps", "linear"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """A few bytes changed, inserted or dropped, or the end cut off."""
    whole = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(whole)))
        whole[start : start + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(whole[: draw(st.integers(0, len(whole)))]) if draw(st.booleans()) else bytes(whole)


# -- protobuf ---------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=200) | damaged(MODEL))
@settings(max_examples=300, deadline=None)
@example(b"\xff" * 9 + b"\x01")
@example(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f")
def test_fields_of_any_bytes_lie_inside_of_them(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        for number, value in fields(memoryview(data)):
            assert number > 0
            assert value >= 0 if isinstance(value, int) else len(value) <= len(data)


@given(st.lists(st.tuples(st.integers(1, 2**29 - 1), st.binary(max_size=30) | st.integers(0, 2**64 - 1)), max_size=8))
@settings(max_examples=100, deadline=None)
def test_fields_are_what_was_written(written: list[tuple[int, Any]]) -> None:
    def varint(value: int) -> bytes:
        rest = value >> 7
        return bytes([value & 0x7F | (0x80 if rest else 0)]) + (varint(rest) if rest else b"")

    data = b"".join(
        varint(n << 3) + varint(v) if isinstance(v, int) else varint(n << 3 | 2) + varint(len(v)) + v
        for n, v in written
    )
    found = [(n, v if isinstance(v, int) else bytes(v)) for n, v in fields(memoryview(data))]
    assert found == written


@given(st.binary(max_size=200) | damaged(MODEL))
@settings(max_examples=300, deadline=None)
def test_any_bytes_have_a_signature_or_a_named_refusal(data: bytes) -> None:
    with contextlib.suppress(ExportError):
        signature = read_signature(data)
        assert all(isinstance(spec.name, str) for spec in signature.inputs + signature.outputs)


@given(st.binary(max_size=200) | damaged(MODEL))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_searched_for_external_data(data: bytes) -> None:
    with contextlib.suppress(BackendError):
        refuse_external_data("test", data)


def beside() -> bytes:
    """The model with its convolution's weights in a file of 36 bytes."""
    model = h.tiny_onnx()
    h.make_external(model.graph.initializer[0], "w", offset=0, length=36)
    return model.SerializeToString()


@given(damaged(beside()))
@settings(max_examples=300, deadline=None)
def test_damaged_graph_takes_its_weights_from_its_own_file_or_is_refused(data: bytes) -> None:
    with contextlib.suppress(BackendError):
        check_own_tensors("test", data, Weights("w", bytes(36)))


def test_graphs_in_graphs_three_thousand_deep_are_refused() -> None:
    data = b""
    for _ in range(3000):
        for number in (6, 5, 1):  # in an attribute of a node of a graph
            data = _message(number, data)
    data = _message(7, data)
    with pytest.raises(BackendError, match="no ONNX model"):
        refuse_external_data("test", data)
    with pytest.raises(DdpmDeployError):
        OnnxRuntimeBackend.from_bytes(data, (), ())


def _message(number: int, data: bytes) -> bytes:
    size, length = b"", len(data)
    while True:
        size += bytes([length & 0x7F | (0x80 if length > 127 else 0)])
        length >>= 7
        if not length:
            return bytes([number << 3 | 2]) + size + data


@given(damaged(MODEL))
@settings(max_examples=40, deadline=None, suppress_health_check=TEMPORARY)
def test_export_of_a_damaged_onnx_file_writes_a_bundle_or_says_why_not(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(data)
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(None):
        code = export([str(tmp_path / "m.onnx"), *h.SAID, "--out", str(tmp_path / "b")])
    if code:
        assert error.getvalue().count("\n") == 1
    else:
        read_bundle(tmp_path / "b")


# -- recipes ----------------------------------------------------------------------------------------------------------

SECTIONS = ("source", "model", "plan", "export", "encoder")
NAMES = (
    "sample_shape", "schedule", "prediction", "variance", "clip", "output", "conditions", "x_name", "step", "weights",
    "allow_scalar_timestep", "factory_options", "name", "version", "licence", "solver", "steps", "spacing", "options",
    "targets", "precisions", "graphs", "opset", "batches", "unroll", "max_relative_error", "budgets",
    "parity_timesteps", "calibration_states", "calibration_seed", "path", "condition", "inputs",
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(("path", *SECTIONS)), values | st.dictionaries(st.sampled_from(NAMES), values)))
@settings(max_examples=300, deadline=None)
@example({"source": {"schedule": {"kind": []}}})
@example({"source": {"output": {"scale": 10**400, "offset": 0, "units": ""}}})
@example({"source": {"conditions": [{"name": "c", "dtype": "float32", "shape": 3}]}})
@example({"export": {"batches": [[]]}})
def test_any_values_are_a_recipe_or_a_named_refusal(recipe: dict[str, Any]) -> None:
    with contextlib.suppress(ValueError):
        make_recipe(recipe)


SCHEDULE = ("kind", "T", "beta_start", "betas", "alpha", "sigma", "alphas_cumprod")


@given(st.dictionaries(st.sampled_from(SCHEDULE), values))
@settings(max_examples=200, deadline=None)
@example({"kind": "betas", "betas": [[]]})
@example({"kind": "linear", "T": 10**30})
@example({"kind": "alpha_sigma", "alpha": "", "sigma": ""})
def test_any_schedule_is_one_or_a_named_refusal(schedule: dict[str, Any]) -> None:
    with contextlib.suppress(ValueError):
        Settings(schedule=schedule)


@given(st.text(max_size=40) | st.binary(max_size=40).map(lambda data: data.decode("latin-1")))
@settings(max_examples=200, deadline=None)
@example("a.b." * 5000 + "c=1")
@example("a = " + "[" * 5000)
@example("a=" + "[" * 5000)
def test_any_text_is_an_assignment_or_a_named_refusal(text: str) -> None:
    with contextlib.suppress(ValueError):
        set_value({}, *parse_assignment(text))


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@quick
@example(b"a = " + b"[" * 5000)
@example(b"[" + b"a." * 5000 + b"b]")
@example(b"a = 0x" + b"f" * 10**5)
@example(b"a = " + b"9" * 10**5)
def test_any_file_is_a_recipe_or_a_named_refusal(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "r.toml").write_bytes(data)
    with contextlib.suppress(ValueError):
        make_recipe(read_recipe(tmp_path / "r.toml"))


# -- weights and arrays -----------------------------------------------------------------------------------------------

header_values = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F64", "F16", "BF16", "I64", "BOOL", "U8", "F8_E4M3", "F4", "C64", "none", 3]),
        "shape": st.lists(st.integers(-2, 2**62) | st.integers(0, 3), max_size=3) | values,
        "data_offsets": st.lists(st.integers(-2, 2**62) | st.integers(0, 16), max_size=3) | values,
    },
)


@given(st.dictionaries(st.text(max_size=5) | st.just("__metadata__"), header_values | values, max_size=3), st.binary())
@quick
def test_any_safetensors_header_gives_tensors_or_a_named_refusal(
    tmp_path: Path, header: dict[str, Any], data: bytes
) -> None:
    (tmp_path / "w.safetensors").write_bytes(h.safetensors(header, data))
    with contextlib.suppress(ExportError):
        for tensor in read_safetensors(tmp_path / "w.safetensors").values():
            assert tensor.numel() * tensor.element_size() <= len(data)


@given(values)
@quick
@example({"weight_map": {"a": "w.index.json"}})
@example({"weight_map": {"a": ["b"]}})
def test_any_index_of_shards_ends_in_a_named_refusal(tmp_path: Path, index: Any) -> None:
    (tmp_path / "w.index.json").write_text(json.dumps(index))
    with pytest.raises(ExportError):
        read_weights(tmp_path / "w.index.json")


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.arange(12.0, dtype=np.float32).reshape(3, 4))
    return buffer.getvalue()


@given(st.binary(max_size=100) | damaged(npy()))
@quick
@example(h.npy_header((2**62, 2**62)))
@example(b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 16)
@example(b"\x93NUMPY\x02\x00\xff\xff\xff\x7f")
def test_any_bytes_are_an_array_of_numbers_or_a_named_refusal(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(data)
    with contextlib.suppress(ValueError):
        assert not array(tmp_path / "a.npy").dtype.hasobject


# -- folders that look like a model -----------------------------------------------------------------------------------


@given(st.sampled_from(["model_index.json", "config.json", "unet/config.json", "run.json"]), values)
@quick
def test_any_json_in_the_place_of_a_models_ends_in_a_named_refusal(tmp_path: Path, name: str, value: Any) -> None:
    folder = tmp_path / re.sub(r"\W", "_", name)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(value))
    with pytest.raises((DdpmDeployError, ValueError)):
        open_source(str(folder))


# -- what is written for others ---------------------------------------------------------------------------------------


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.text(max_size=30), min_size=1, max_size=3))
@settings(max_examples=200, deadline=None)
@example({"name": 'a" instance_group { count: 9 } x: "'})
@example({"name": '\\"\n\x00\x7f\u2028\U0001f600'})
def test_text_in_a_triton_configuration_stays_one_quoted_text(message: dict[str, str]) -> None:
    lines = pbtxt.to_text(message).splitlines()
    assert len(lines) == len(message)
    for line, (name, text) in zip(lines, message.items(), strict=True):
        key, _, quoted = line.partition(": ")
        assert (key, json.loads(quoted)) == (name, text)
        assert re.fullmatch(r'"([^"\\]|\\.)*"', quoted)


@given(values)
@quick
def test_a_recipe_that_is_printed_is_read_back(value: Any) -> None:
    from ddpm_deploy.export.recipe import effective, to_toml

    recipe = {"source": {"factory_options": {"k": value}}}
    with contextlib.suppress(TypeError, ValueError):  # TOML has no null
        text = to_toml(effective(recipe))
        assert make_recipe(tomllib.loads(text)).source.factory_options.keys() == {"k"}


def test_the_sound_inputs_of_this_file_are_read(tmp_path: Path) -> None:
    assert [spec.name for spec in read_signature(MODEL).inputs] == ["x", "t"]
    refuse_external_data("test", MODEL)
    check_own_tensors("test", beside(), Weights("w", bytes(36)))
    with pytest.raises(BackendError, match="ends at 36 of 'w', which has 35 bytes"):
        check_own_tensors("test", beside(), Weights("w", bytes(35)))
    onnx.checker.check_model(onnx.ModelProto.FromString(MODEL))
    (tmp_path / "a.npy").write_bytes(npy())
    assert array(tmp_path / "a.npy").shape == (3, 4)
    with pytest.raises(BundleError):
        read_bundle(tmp_path)
