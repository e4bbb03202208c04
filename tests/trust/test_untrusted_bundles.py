"""Bundles and arrays from strangers, given to the commands that read them; hashes are forged so that they fit."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile as h
import numpy as np
import onnx
import pytest

from ddpm_deploy.build import main as build
from ddpm_deploy.bundle import METADATA_KEY, default_bundle, read_bundle
from ddpm_deploy.errors import BundleError, DdpmDeployError
from ddpm_deploy.parity.__main__ import main as parity
from ddpm_deploy.protobuf import fields
from ddpm_deploy.sample import main as sample
from ddpm_deploy.sampler import Sampler

DENOISER, WEIGHTS, REFERENCE = "denoiser.fp32.onnx", "denoiser.fp32.torch.safetensors", "reference.npz"
QUICK = ("--num", "2", "--steps", "2", "--threads", "1")

Refused = Callable[..., str]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy of the digits bundle."""
    return Path(shutil.copytree(default_bundle(), tmp_path / "bundle"))


def edit(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    members = json.loads((bundle / "bundle.json").read_text())
    change(members)
    (bundle / "bundle.json").write_text(json.dumps(members))


def forge(bundle: Path, name: str, data: bytes) -> None:
    """Replace a file, and let bundle.json say its new size and hash."""
    (bundle / name).write_bytes(data)

    def fit(members: dict[str, Any]) -> None:
        for file in [*members["files"], members["reference"]]:
            if file["path"] == name:
                file.update(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    edit(bundle, fit)


def drawn(bundle: Path, backend: str = "onnxruntime") -> np.ndarray:
    with Sampler.load(bundle, backend=backend, threads=1) as sampler:
        return sampler.sample(2, steps=2)


# -- bundle.json against the files ------------------------------------------------------------------------------------

EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "schedule": lambda m: m["schedule"].update(alpha=[0.999 * alpha for alpha in m["schedule"]["alpha"]]),
    "prediction": lambda m: m.update(prediction="v"),
    "variance": lambda m: m.update(variance="large" if m["variance"] == "small" else "small"),
    "clip": lambda m: m.update(clip=[-2.0, 2.0]),
    "sample_shape": lambda m: m.update(sample_shape=[1, 8, 16]),
    "conditions": lambda m: m["conditions"].append({"name": "c", "shape": [], "dtype": "int64", "classes": None}),
    "output": lambda m: m["output"].update(scale=[16.0]),
}


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_manifest_that_contradicts_the_one_in_its_graph(
    refused: Refused, bundle: Path, name: str, backend: str
) -> None:
    edit(bundle, EDITS[name])
    line = refused(sample, bundle, *QUICK, "--backend", backend, out="x.npy")
    assert f"{DENOISER}: was exported with another {name} than bundle.json says" in line


def test_parity_and_build_refuse_a_contradicting_manifest_too(refused: Refused, bundle: Path, tmp_path: Path) -> None:
    edit(bundle, EDITS["prediction"])
    assert "another prediction than" in refused(parity, bundle, out=None)
    assert "another prediction than" in refused(build, bundle, "--cache", tmp_path / "cache", out=None)


def test_graph_without_a_manifest_inside_is_accepted(bundle: Path) -> None:
    whole = drawn(bundle)
    model = onnx.load(bundle / DENOISER)
    del model.metadata_props[:]
    forge(bundle, DENOISER, model.SerializeToString())
    np.testing.assert_array_equal(drawn(bundle), whole)


@pytest.mark.parametrize("value", ["", "{}", "null", '{"format_version": "9.0"}', "\x00"])
def test_graph_with_a_damaged_manifest_inside_is_refused(bundle: Path, value: str) -> None:
    model = onnx.load(bundle / DENOISER)
    for pair in model.metadata_props:
        pair.value = value if pair.key == METADATA_KEY else pair.value
    forge(bundle, DENOISER, model.SerializeToString())
    with pytest.raises(BundleError, match=DENOISER):
        read_bundle(bundle)


def test_changed_wording_of_a_bundle_is_no_contradiction(bundle: Path) -> None:
    edit(bundle, lambda m: (m["model"].update(name="other", licence="MIT"), m["defaults"].update(steps=3)))
    assert read_bundle(bundle).manifest.defaults.steps == 3


# -- truncation at every section, with hashes that fit ----------------------------------------------------------------


def sections_of_onnx(data: bytes) -> list[int]:
    """Where each top-level field of the message ends."""
    ends, end = [], 0
    for number, value in fields(memoryview(data)):
        payload = len(value) if isinstance(value, memoryview) else 0
        end += varint_bytes(number << 3) + varint_bytes(payload or value) + payload
        ends.append(end)
    assert end == len(data)
    return ends


def varint_bytes(value: Any) -> int:
    return 1 if isinstance(value, memoryview) else max(1, (value.bit_length() + 6) // 7)


def sections_of_npz(data: bytes) -> list[int]:
    """Where each member begins, its data begins, and the directory begins."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        begins = [member.header_offset for member in archive.infolist()]
        return [*begins, *(begin + 30 for begin in begins), archive.start_dir, len(data) - 22]


def sections_of_safetensors(data: bytes) -> list[int]:
    """The length, the header, and the first and last tensor."""
    header = 8 + int.from_bytes(data[:8], "little")
    return [0, 8, header // 2, header, header + 4, (header + len(data)) // 2, len(data)]


def cuts(ends: list[int], total: int) -> list[int]:
    """Just before, at and just after each boundary; something is cut off every time."""
    return sorted({cut for end in ends for cut in (end - 1, end, end + 1) if 1 <= cut < total})


def test_graph_cut_at_any_section_is_refused_or_draws_the_same(refused: Refused, bundle: Path, tmp_path: Path) -> None:
    data, whole = (bundle / DENOISER).read_bytes(), drawn(bundle)
    points = cuts(sections_of_onnx(data), len(data))
    assert len(points) > 8
    same = []
    for cut in points:
        forge(bundle, DENOISER, data[:cut])
        try:
            same.append(np.array_equal(drawn(bundle), whole))
        except DdpmDeployError:
            refused(sample, bundle, *QUICK, out="x.npy")
    assert all(same)
    assert len(same) < len(points) // 2


def test_lone_graph_cut_at_any_section_is_refused(refused: Refused, tmp_path: Path) -> None:
    data = (default_bundle() / DENOISER).read_bytes()
    for cut in cuts(sections_of_onnx(data), len(data)):
        (tmp_path / "m.onnx").write_bytes(data[:cut])
        assert "m.onnx: " in refused(sample, tmp_path / "m.onnx", *QUICK, out="x.npy")


def test_weights_cut_at_any_section_are_refused(refused: Refused, bundle: Path) -> None:
    data = (bundle / WEIGHTS).read_bytes()
    for cut in cuts(sections_of_safetensors(data), len(data)):
        forge(bundle, WEIGHTS, data[:cut])
        line = refused(sample, bundle, *QUICK, "--backend", "torch", out="x.npy")
        assert f"{WEIGHTS} does not fit the network" in line


def test_reference_cut_at_any_section_is_refused(refused: Refused, bundle: Path) -> None:
    data = (bundle / REFERENCE).read_bytes()
    for cut in cuts(sections_of_npz(data), len(data)):
        forge(bundle, REFERENCE, data[:cut])
        line = refused(parity, bundle, "--against", "reference", "--backends", "onnxruntime", out=None)
        assert "reference.npz: " in line


def test_json_cut_anywhere_is_refused(refused: Refused, bundle: Path) -> None:
    data = (bundle / "bundle.json").read_bytes().rstrip()
    marks = [i for i, byte in enumerate(data) if byte in b"\n{}"]
    for cut in cuts(marks[::4], len(data)):
        (bundle / "bundle.json").write_bytes(data[:cut])
        assert "bundle.json: " in refused(sample, bundle, *QUICK, out="x.npy")


def test_any_file_cut_without_forged_hashes_is_refused_by_its_size(refused: Refused, bundle: Path) -> None:
    for name in (DENOISER, WEIGHTS, REFERENCE):
        data = (bundle / name).read_bytes()
        (bundle / name).write_bytes(data[:-1])
        assert f"{name}: got {len(data) - 1} bytes, expected {len(data)}" in refused(
            sample, bundle, *QUICK, out="x.npy"
        )
        (bundle / name).write_bytes(data)


# -- sizes that are only said, and numbers that make no sense ---------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([2**60], "sample_shape[0]: got 1152921504606846976"),
        ([1, 2**14, 2**15], "268435456 elements"),
        ([1, 2**14, 2**14], "another sample_shape than"),
    ],
)
def test_giant_sample_shape(refused: Refused, bundle: Path, shape: list[int], message: str) -> None:
    edit(bundle, lambda m: m.update(sample_shape=shape))
    assert message in refused(sample, bundle, *QUICK, out="x.npy")


@pytest.mark.parametrize("change", [{"block_out_channels": [32, 10**8]}, {"layers_per_block": 10**9}])
def test_giant_network(refused: Refused, bundle: Path, change: dict[str, Any]) -> None:
    edit(bundle, lambda m: m["network"]["config"].update(change))
    line = refused(sample, bundle, *QUICK, "--backend", "torch", out="x.npy")
    assert "does not fit the network" in line or "network: cannot be built" in line


def test_graph_with_a_weight_that_is_no_number_is_refused_when_it_draws(refused: Refused, bundle: Path) -> None:
    model = onnx.load(bundle / DENOISER)
    weights = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    values = np.frombuffer(weights.raw_data, np.float32).copy()
    values[0] = np.nan
    weights.raw_data = values.tobytes()
    forge(bundle, DENOISER, model.SerializeToString())
    assert "output is not finite" in refused(sample, bundle, *QUICK, out="x.npy")


# -- arrays of numbers that hold code, or are bombs --------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--x-T", "--noise"])
@pytest.mark.parametrize("kind", ["objects", "pickle", "archive"])
def test_code_in_an_array(refused: Refused, canary: Path, tmp_path: Path, flag: str, kind: str) -> None:
    objects = h.object_array(canary)
    data = {"objects": objects, "pickle": h.pickled(canary), "archive": h.npz({"a": objects})}[kind]
    (tmp_path / "a.npy").write_bytes(data)
    assert "a.npy: not a .npy file of numbers" in refused(sample, *QUICK, flag, tmp_path / "a.npy", out="x.npy")


@pytest.mark.parametrize("name", ["head", "t", "update"])
def test_code_in_a_plan(refused: Refused, canary: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "plan.npz").write_bytes(h.npz({name: h.object_array(canary)}))
    assert "plan.npz: not a plan file" in refused(sample, "--plan", tmp_path / "plan.npz", out="x.npy")


def test_pickle_as_a_plan(refused: Refused, canary: Path, tmp_path: Path) -> None:
    for name in ("plan.npz", "plan.json"):
        (tmp_path / name).write_bytes(h.pickled(canary))
        assert "plan" in refused(sample, "--plan", tmp_path / name, out="x.npy")


@pytest.mark.parametrize("name", ["x", "trajectory.plan", "condition.c"])
def test_code_in_a_reference(refused: Refused, canary: Path, bundle: Path, name: str) -> None:
    with zipfile.ZipFile(bundle / REFERENCE) as archive:
        members = {entry.removesuffix(".npy"): archive.read(entry) for entry in archive.namelist()}
    forge(bundle, REFERENCE, h.npz(members | {name: h.object_array(canary)}))
    line = refused(parity, bundle, "--against", "reference", "--backends", "onnxruntime", out=None)
    assert f"{name}.npy: got dtype object" in line


@pytest.mark.parametrize("shape", [(2**60,), (2**33,), (0, 2**60)])
def test_giant_array_that_is_not_there(refused: Refused, tmp_path: Path, shape: tuple[int, ...]) -> None:
    (tmp_path / "a.npy").write_bytes(h.npy_header(shape))
    line = refused(sample, *QUICK, "--x-T", tmp_path / "a.npy", out="x.npy")
    assert "a.npy: not a .npy file" in line or "x_T: got shape" in line


# -- requests that would hang -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "100000"], "threads: got 100000, expected 1 to 1024"),
        (["--threads", "0"], "threads: got 0, expected 1 to 1024"),
        (["--steps", str(10**9)], "steps: got 1000000000"),
    ],
)
def test_request_for_too_much(refused: Refused, arguments: list[str], message: str) -> None:
    assert message in refused(sample, *arguments, out="x.npy")


@pytest.mark.parametrize("value", ["-1", "0", "nan", "inf", "many"])
@pytest.mark.parametrize("flag", ["--max-step-error", "--max-final-error"])
def test_bound_that_bounds_nothing(refused: Refused, flag: str, value: str) -> None:
    assert f"argument {flag}: " in refused(parity, f"{flag}={value}", out=None)


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--batch-size", 10**9), ("--threads", 10**6), ("--workers", 10**6), ("--sample-count", 10**9)],
)
def test_training_on_too_much_at_once(refused: Refused, flag: str, value: int) -> None:
    from ddpm_deploy.train.__main__ import main as train

    assert f"got {value}, expected" in refused(train, flag, value, "--steps", "1", "--cpu")


# -- where the result goes, looked at before the work -----------------------------------------------------------------


@pytest.mark.parametrize("out", ["/proc/x.npy", "/proc/x.png", "/proc/pictures", "/dev/null/x.png"])
def test_place_that_cannot_be_written(refused: Refused, out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sampler, "sample", lambda *args, **options: pytest.fail("drew before it looked"))
    assert out.split("/")[-1] in refused(sample, *QUICK, "--out", out, out=None)


def test_folder_in_the_place_of_a_picture(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "x.png").mkdir()
    assert "x.png: Is a directory" in refused(sample, *QUICK, out="x.png")


def test_parity_looks_at_its_folder_first(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddpm_deploy.parity.__main__.open_backend", lambda *a, **o: pytest.fail("ran before it looked"))
    assert "/proc/report" in refused(parity, "--against", "reference", "--out", "/proc/report", out=None)


def test_empty_path_is_not_the_working_directory(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ddpm_deploy.train.__main__ import main as train

    monkeypatch.chdir(tmp_path)
    for main in (sample, parity, train):
        assert "argument --out: got an empty path" in refused(main, "--out", "", out=None)
    assert "argument --cache: got an empty path" in refused(build, "--list", "--cache", "", out=None)
