from __future__ import annotations

from pathlib import Path

import pytest
from bundle_samples import sample_manifest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ddpm_deploy.bundle import METADATA_KEY, read_bundle, read_onnx_manifest, sha256_of, to_metadata
from ddpm_deploy.bundle.onnx_metadata import find_metadata
from ddpm_deploy.errors import BundleError

onnx = pytest.importorskip("onnx", reason="writes the files that are read without it")

MANIFEST = sample_manifest()
TEXT = to_metadata(MANIFEST, MANIFEST.files[0])


def model(*metadata: tuple[str, str]) -> bytes:
    """A valid ONNX file as the onnx package writes it, with 100 kB of weights."""
    info = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["B"])
    weights = onnx.helper.make_tensor("w", onnx.TensorProto.UINT8, [100_000], bytes(100_000), raw=True)
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [info], [
        onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["B"])], [weights])  # fmt: skip
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    for key, value in metadata:
        proto.metadata_props.add(key=key, value=value)
    data: bytes = proto.SerializeToString()
    return data


MODEL = model(("other", "x"), (METADATA_KEY, TEXT), ("after", ""))


def test_metadata_is_found_as_onnx_wrote_it() -> None:
    assert find_metadata(MODEL, "m.onnx").decode() == TEXT


def test_lone_file_reads_as_a_bundle_with_this_one_file(tmp_path: Path) -> None:
    path = tmp_path / "renamed.onnx"
    path.write_bytes(MODEL)
    bundle = read_bundle(path, digest=sha256_of(MODEL))
    (file,) = bundle.manifest.files
    assert (file.path, file.size_bytes, f"sha256:{file.sha256}") == ("renamed.onnx", len(MODEL), bundle.digest)
    assert (file.role, file.parity, file.inputs) == ("denoiser", {"relative_l2": 1e-6}, MANIFEST.files[0].inputs)
    assert bundle.open_bytes(bundle.file("denoiser", "fp32")) == MODEL
    assert bundle.manifest.schedule == MANIFEST.schedule
    assert (bundle.manifest.network, bundle.manifest.reference) == (None, None)
    assert read_onnx_manifest(path) == bundle.manifest
    assert read_onnx_manifest(MODEL).model == MANIFEST.model


def test_lone_file_with_another_digest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(MODEL)
    with pytest.raises(BundleError, match="not the bundle that was pinned"):
        read_bundle(tmp_path / "m.onnx", digest=sha256_of(b""))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (model(), "got 0 metadata entries 'ddpm_deploy', expected 1; export the model with ddpm-deploy"),
        (model((METADATA_KEY, TEXT), (METADATA_KEY, TEXT)), "got 2 metadata entries"),
        (model((METADATA_KEY, "")), "m.onnx: Expecting value"),
        (model((METADATA_KEY, TEXT.replace('"eps"', '"epsilon"'))), "m.onnx: prediction: got 'epsilon'"),
        (MODEL[:-1], "no ONNX file"),
        (MODEL[: len(MODEL) // 2], "past the end"),
        (b"", "got 0 metadata entries"),
        (b"\x00", "field number 0"),
        (b"\xff" * 20, "more than 10 bytes"),
        (b"\x0b", "wire type 3"),
        (b"\x08\x01" * 200_000, "more than 100000 fields"),
        (b"PK\x03\x04 a zip", "no ONNX file"),
    ],
)
def test_file_without_a_sound_manifest_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(BundleError) as caught:
        read_bundle(tmp_path / "m.onnx")
    assert message in str(caught.value)


@given(st.binary(max_size=300))
@example(b"\x72\x02\x0a\xff")
@settings(max_examples=300, deadline=None)
def test_any_bytes_end_in_bundle_error(data: bytes) -> None:
    with pytest.raises(BundleError):
        read_onnx_manifest(data)


@given(st.integers(0, len(MODEL) - 1), st.binary(min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_any_damage_ends_in_bundle_error_or_a_manifest(start: int, patch: bytes) -> None:
    damaged = MODEL[:start] + patch + MODEL[start + len(patch) :]
    try:
        manifest = read_onnx_manifest(damaged)
    except BundleError:
        return
    assert manifest.files[0].size_bytes == len(damaged)
