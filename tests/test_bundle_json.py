from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from bundle_samples import sample_files, sample_manifest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_deploy.bundle import FORMAT_VERSION, from_json, read_bundle, to_json, write_bundle
from ddpm_deploy.bundle.fields import MAX_JSON_BYTES
from ddpm_deploy.errors import BundleError

HASH = "0" * 64


def stored() -> dict[str, Any]:
    """The members of a valid bundle.json."""
    members = json.loads(_TEXT)
    assert isinstance(members, dict)
    return members


def _make_text() -> str:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return to_json(write_bundle(f"{folder}/b", sample_manifest(), sample_files()).manifest)


_TEXT = _make_text()


def refused(members: Any) -> str:
    with pytest.raises(BundleError) as caught:
        from_json(json.dumps(members))
    return str(caught.value)


def set_at(path: str, value: Any) -> dict[str, Any]:
    """A valid bundle.json with one value replaced; path like `files.0.path`."""
    members = stored()
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    at: Any = members
    for key in parents:
        at = at[key]
    at[last] = value
    return members


def test_manifest_survives_json_without_loss() -> None:
    manifest = from_json(_TEXT)
    assert from_json(to_json(manifest)) == manifest
    assert to_json(from_json(to_json(manifest))) == _TEXT
    assert manifest.schedule == sample_manifest().schedule
    assert manifest.conditions == sample_manifest().conditions


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schedule.alpha.4", 2.0, r"bundle.json: schedule.alpha/sigma[4] is not below [3]"),
        ("schedule.alpha.4", -1.0, "bundle.json: schedule.alpha[4]: got -1.0, expected a finite number >= 0"),
        ("schedule.alpha.4", "0.5", "bundle.json: schedule.alpha[4]: got '0.5', expected a number"),
        ("schedule.sigma.0", 0, "bundle.json: schedule.sigma[0]: got 0.0, expected a finite number > 0"),
        ("schedule.sigma", [1.0], "schedule.alpha, sigma: got shapes (10,), (1,)"),
        ("sample_shape", [], "sample_shape: got [], expected 1 to 8 axes"),
        ("sample_shape", [2, 0], "sample_shape[1]: got 0, expected a whole number in [1,"),
        ("sample_shape", [2, True], "sample_shape[1]: got True"),
        ("sample_shape", [2, 4.0], "sample_shape[1]: got 4.0"),
        ("sample_shape", [2, 65536, 65536], "268435456 elements"),
        ("sample_shape", [2] * 9, "1 to 8 axes"),
        ("output.scale", [], "output.scale: got [], expected 1 or 2 numbers"),
        ("output.offset", [1, 2, 3], "output.offset: got [1.0, 2.0, 3.0], expected 1 or 2 numbers"),
        ("output.scale", [0, 1], "no zero"),
        ("prediction", "epsilon", "prediction: got 'epsilon', expected one of eps, v, x0, flow"),
        ("variance", None, "variance: got None, expected one of small, large, learned"),
        ("clip", [1, -1], "clip: got [1, -1], expected [low, high] with low < high"),
        ("clip", [1], "clip: got [1]"),
        ("conditions.0.name", "x", "conditions[0].name: got 'x', expected another name than x and t"),
        ("conditions.1.name", "labels", "conditions[1]: the name 'labels' occurs twice"),
        ("conditions.0.dtype", "object", "conditions[0].dtype: got 'object'"),
        ("conditions.1.classes", ["a"], "conditions[1].classes"),
        ("conditions.0.null", 1, "conditions[0].null: got 1, expected a whole number in [2,"),
        ("conditions.0.null", 2.0, "conditions[0].null: got 2.0, expected a whole number"),
        ("conditions.1.null", 1e300, "conditions[1].null: got 1e+300, expected a number that float32 can hold"),
        ("conditions.1.null", "none", "conditions[1].null: got 'none', expected a number"),
        ("defaults.steps", 11, "defaults.steps: got 11, expected a whole number in [1, 10]"),
        ("defaults.options", [], "defaults.options: got [], expected an object"),
        ("network", None, "network: got null, but files has one for torch"),
        ("network.kind", 3, "network.kind: got 3"),
        ("files", [], "files: got none, expected at least one"),
        ("files.0.role", "denoise", "files[0].role: got 'denoise', expected one of denoiser, step"),
        ("files.0.sha256", HASH.upper().replace("0", "A"), "files[0].sha256"),
        ("files.0.size_bytes", 0, "files[0].size_bytes: got 0"),
        ("files.0.opset", "18", "files[0].opset: got '18'"),
        ("files.0.parity", {"relative_l2": "small"}, "files[0].parity.relative_l2: got 'small', expected a number"),
        ("files.0.inputs.0.shape", ["B", -1], "files[0].inputs[0].shape[1]: got -1"),
        ("files.0.inputs.1.name", "x", "files[0]: inputs and outputs[1]: the name 'x' occurs twice"),
        ("files.1.target", "onnx", "the role, precision and target 'denoiser.fp32.onnx' occurs twice"),
        ("files.1.path", "DENOISER.fp32.onnx", "files[1]: the path 'denoiser.fp32.onnx' occurs twice"),
        ("reference", "reference.npz", "reference: got 'reference.npz', expected an object"),
        ("model.name", "two\nlines", "model.name"),
        ("format_version", "2.0", "format_version: got 2.0, expected 1.x; upgrade ddpm-deploy"),
        ("format_version", "0.9", "format_version: got 0.9, expected 1.x; export the model again"),
        ("format_version", 1.0, "format_version: got 1.0, expected a text"),
    ],
)
def test_wrong_value_is_refused_by_name(path: str, value: Any, message: str) -> None:
    assert message in refused(set_at(path, value))


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../other",
        "..",
        ".",
        "",
        "a/b",
        "a\\b",
        "C:x",
        "bundle.json",
        "Bundle.JSON",
        "a\x00b",
        ".hidden",
        7,
    ],
)
def test_path_that_is_no_plain_name_is_refused(path: Any) -> None:
    assert "files[0].path: got" in refused(set_at("files.0.path", path))
    assert "reference.path: got" in refused(set_at("reference.path", path))


LATER = ("measured_on", "over_budget", "weights", "size_multiple", "null", "timesteps")  # a bundle of 1.0 has none of them


def test_missing_and_unknown_keys_are_refused_everywhere() -> None:
    for path in _objects(stored()):
        at, members = _walk(path)
        at["surprise"] = 1
        assert "unknown key 'surprise'" in refused(members)
        for key in list(at):
            at, members = _walk(path)
            if key != "surprise":
                del at[key]
                if key in LATER:
                    from_json(json.dumps(members))
                else:
                    assert f"{key!r} is missing" in refused(members)


@pytest.mark.parametrize(
    ("steps", "t", "message"),
    [
        (3, [9, 4.5], "expected 3 numbers from"),
        (2, [4, 9], "each below the one before"),
        (2, [1e6, 9], "each below the one before"),
        (2, [9, -1], "each below the one before"),
        (2, [9, "x"], "expected a number"),
    ],
)
def test_default_timesteps_that_are_no_way_down_are_refused(steps: int, t: list[Any], message: str) -> None:
    members = set_at("defaults.steps", steps)
    members["defaults"]["timesteps"] = t
    assert message in refused(members)


def test_default_timesteps_survive_a_round_trip() -> None:
    members = set_at("defaults.steps", 3)
    members["defaults"]["timesteps"] = [9, 4.5, 0]
    assert from_json(to_json(from_json(json.dumps(members)))).defaults.timesteps == (9, 4.5, 0)


def test_newer_minor_version_is_accepted_and_its_unknown_keys_come_with_a_hint() -> None:
    assert from_json(json.dumps(set_at("format_version", "1.7"))).format_version == "1.7"
    members = set_at("format_version", "1.7")
    members["sampling_hint"] = 3
    message = refused(members)
    assert "unknown key 'sampling_hint'" in message
    assert f"format 1.7 is newer than this package's {FORMAT_VERSION}: upgrade ddpm-deploy" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_TEXT.replace("127.5", "NaN", 1), "got NaN, expected finite numbers"),
        (_TEXT.replace("127.5", "-Infinity", 1), "got -Infinity"),
        (_TEXT.replace("127.5", "1e999", 1), "'1e999' is out of range"),
        (_TEXT.replace("127.5", "9" * 400, 1), "is out of range"),
        (_TEXT.replace('"units"', '"scale": [1.0], "units"', 1), "the key 'scale' occurs twice"),
        (_TEXT.replace("grey level", "grey \\ud800 level"), "surrogates not allowed"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
        ("", "Expecting value"),
        ("null", "got None, expected an object"),
        ("{}", "'format_version' is missing; it is no bundle of this package"),
        (_TEXT + "{}", "Extra data"),
    ],
)
def test_bad_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(BundleError, match=r"^bundle.json: ") as caught:
        from_json(text)
    assert message in str(caught.value)


def test_non_utf8_is_refused() -> None:
    with pytest.raises(BundleError, match="can't decode byte 0xff"):
        from_json(_TEXT.encode().replace(b"grey", b"gr\xffy"))


def test_oversized_text_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(BundleError, match=f"expected at most {MAX_JSON_BYTES}"):
        from_json(b" " * (MAX_JSON_BYTES + 1))


def test_deeply_nested_provenance_is_refused() -> None:
    deep: Any = 1
    for _ in range(40):
        deep = [deep]
    assert "model.provenance" in refused(set_at("model.provenance.deep", deep))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def holds(text: str | bytes) -> None:
    """Parsing ends in BundleError, or in a manifest that is stored and read back unchanged."""
    manifest, problem = None, ""
    try:
        manifest = from_json(text)
    except BundleError as error:
        problem = str(error)
    assert problem.startswith("bundle.json") if manifest is None else from_json(to_json(manifest)) == manifest


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_any_value_in_any_place_ends_in_bundle_error_or_a_sound_manifest(data: st.DataObject) -> None:
    members = stored()
    path = data.draw(st.sampled_from(_places(members)))
    at: Any = members
    for key in path[:-1]:
        at = at[key]
    if data.draw(st.booleans()):
        at[path[-1]] = data.draw(json_values)
    else:
        del at[path[-1]]
    holds(json.dumps(members))


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_any_damaged_byte_ends_in_bundle_error_or_a_sound_manifest(data: st.DataObject) -> None:
    text = bytearray(_TEXT.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text) - 1))
        text[start : start + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    holds(bytes(text[: data.draw(st.integers(0, len(text)) | st.just(len(text)))]))


@given(st.binary(max_size=200) | json_values.map(json.dumps).map(str.encode))
@settings(max_examples=200, deadline=None)
def test_anything_else_ends_in_bundle_error(data: bytes) -> None:
    with pytest.raises(BundleError):
        from_json(data)


def test_writer_refuses_what_the_reader_would(tmp_path: Any) -> None:
    from dataclasses import replace

    for wrong in ({"clip": (1.0, -1.0)}, {"prediction": "noise"}, {"network": {"kind": "unet", "config": {"f": len}}}):
        with pytest.raises(BundleError):
            write_bundle(tmp_path / "b", replace(sample_manifest(), **wrong), sample_files())
    assert not list(tmp_path.iterdir())
    write_bundle(tmp_path / "b", sample_manifest(), sample_files())
    read_bundle(tmp_path / "b")


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value, at most three of a list."""
    if isinstance(value, dict):
        children = list(value.items())
    else:
        children = list(enumerate(value))[:3] if isinstance(value, list) else []
    return [path for key, child in children for path in ([*at, key], *_places(child, (*at, key)))]  # type: ignore[misc]


def _objects(members: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The path of every object whose keys are fixed."""
    free = {("model", "provenance"), ("defaults", "options"), ("network", "config"), ("files", 0, "parity")}
    found: list[tuple[Any, ...]] = [()]
    for path in map(tuple, _places(members)):
        at: Any = members
        for key in path:
            at = at[key]
        if isinstance(at, dict) and not any(path[: len(prefix)] == prefix for prefix in free):
            found.append(path)
    assert len(found) > 12
    return found


def _walk(path: tuple[Any, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    members = copy.deepcopy(stored())
    at: Any = members
    for key in path:
        at = at[key]
    return at, members
