"""Models from strangers, given to the export command: one line, exit code 2, no code run, nothing written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile as h
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from ddpm_deploy.bundle import read_bundle
from ddpm_deploy.export.__main__ import main as export

SAFETENSORS, BIN = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"
INDEX = f"{SAFETENSORS}.index.json"
ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}

Refused = Callable[..., str]
Change = Callable[[onnx.ModelProto, Path], Any]


def one_number(value: float = 1.0) -> bytes:
    """Weights of one tensor, sound but for its number."""
    return h.safetensors({"conv_in.weight": ONE}, np.float32(value).tobytes())


# -- code inside ------------------------------------------------------------------------------------------------------


def test_the_pickles_of_these_tests_do_run_code_when_they_are_loaded(canary: Path) -> None:
    pickle.loads(h.pickled(canary))
    assert canary.exists()


@pytest.mark.parametrize("name", [SAFETENSORS, BIN])
@pytest.mark.parametrize("archive", [False, True])
def test_pickle_as_weights_of_a_diffusers_folder(
    refused: Refused, canary: Path, tmp_path: Path, name: str, archive: bool
) -> None:
    data = h.torch_archive({"w": h.Attack(canary)}) if archive else h.pickled(canary)
    message = refused(export, h.diffusers_folder(tmp_path / "model", {name: data}))
    assert ("never run" if name == BIN else "is no whole safetensors file") in message


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("part", ["model", "ema"])
def test_pickle_as_a_checkpoint(refused: Refused, canary: Path, tmp_path: Path, suffix: str, part: str) -> None:
    (tmp_path / f"model{suffix}").write_bytes(h.torch_archive({"model": {}, part: h.Attack(canary)}))
    message = refused(export, tmp_path / f"model{suffix}")
    assert ("is no whole safetensors file" if suffix == ".safetensors" else "never run") in message


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_pickle_as_weights_that_are_named_apart(refused: Refused, canary: Path, tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"w{suffix}").write_bytes(h.pickled(canary))
    folder = h.diffusers_folder(tmp_path / "model", {SAFETENSORS: one_number()})
    assert f"w{suffix}" in refused(export, folder, "--weights", tmp_path / f"w{suffix}")


def test_pickle_as_an_onnx_file(refused: Refused, canary: Path, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(h.pickled(canary))
    assert "is no whole ONNX file" in refused(export, tmp_path / "m.onnx", *h.SAID)


def test_pickle_as_a_recipe(refused: Refused, canary: Path, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_bytes(h.pickled(canary))
    assert "is no TOML" in refused(export, "--recipe", tmp_path / "r.toml")


# -- sizes that are only said -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (h.safetensors({"w": ONE | {"shape": [2**60], "data_offsets": [0, 2**62]}}), "overflow"),
        (h.safetensors({"w": ONE | {"shape": [2**30], "data_offsets": [0, 2**32]}}), "no whole safetensors"),
        (h.safetensors({"w": ONE | {"shape": [2**30]}}, b"1234"), "no whole safetensors"),
        ((2**63).to_bytes(8, "little") + b"{}", "header too large"),
        (h.safetensors({f"w{i}": ONE for i in range(9)}, b"1234"), "no whole safetensors"),
    ],
)
def test_giant_shapes_in_a_safetensors_header(refused: Refused, tmp_path: Path, data: bytes, message: str) -> None:
    assert message in refused(export, h.diffusers_folder(tmp_path / "model", {SAFETENSORS: data}))


def test_index_of_shards_that_names_itself(refused: Refused, tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"w": INDEX}}).encode()
    assert "expected a plain file name" in refused(export, h.diffusers_folder(tmp_path / "m", {INDEX: index}))


def test_archive_whose_members_lie_over_each_other(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(h.torch_archive({"w": torch.zeros(4000)}))
    with zipfile.ZipFile(path, "a") as archive:  # the directory lists the data once more, under other names
        (data,) = [member for member in archive.infolist() if member.filename.endswith("data/0")]
        for i in range(100):
            copy = zipfile.ZipInfo(f"archive/data/{i + 1}")
            for name in ("compress_type", "CRC", "file_size", "compress_size", "header_offset"):
                setattr(copy, name, getattr(data, name))
            archive.filelist.append(copy)
            archive.NameToInfo[copy.filename] = copy
        archive._didModify = True
    assert zipfile.ZipFile(path).read("archive/data/0")
    assert "which is more than it has" in refused(export, path)


def test_lists_of_lists_that_spell_billions(refused: Refused, tmp_path: Path) -> None:
    value: Any = "ha"
    for _ in range(9):
        value = [value] * 1000
    (tmp_path / "model.pt").write_bytes(h.torch_archive({"model": {"w": value}}))
    assert "got a list, expected a tensor" in refused(export, tmp_path / "model.pt")


@pytest.mark.parametrize("T", [10**12, 10**7])
def test_giant_number_of_timesteps(refused: Refused, tmp_path: Path, T: int) -> None:
    (tmp_path / "m.onnx").write_bytes(h.tiny_onnx().SerializeToString())
    said = [f"linear:T={T}" if text.startswith("linear:") else text for text in h.SAID]
    assert f"T: got {T}, expected a whole number of timesteps, 1 to 1000000" in refused(
        export, tmp_path / "m.onnx", *said
    )


# -- ONNX files -------------------------------------------------------------------------------------------------------


def first(model: onnx.ModelProto) -> TensorProto:
    return model.graph.initializer[0]


def outside(location: str) -> Change:
    return lambda model, folder: h.make_external(first(model), location, offset=0, length=36)


def link(make: Callable[[Any, Any], None]) -> Change:
    def change(model: onnx.ModelProto, folder: Path) -> None:
        make(folder.parent / "secret", folder / "w")
        h.make_external(first(model), "w", offset=0, length=36)

    return change


def at(offset: Any, length: Any) -> Change:
    def change(model: onnx.ModelProto, folder: Path) -> None:
        (folder / "w").write_bytes(first(model).raw_data)
        h.make_external(first(model), "w", offset=offset, length=length)

    return change


def overlapping(model: onnx.ModelProto, folder: Path) -> None:
    """A file of 36 bytes that stands for two tensors of 36."""
    (folder / "w").write_bytes(first(model).raw_data)
    for name in ("one", "two"):
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[9])
        h.make_external(tensor, "w", offset=0, length=36)
        model.graph.initializer.append(tensor)


def sparse(model: onnx.ModelProto, folder: Path) -> None:
    values = numpy_helper.from_array(np.ones(2, np.float32), "values")
    h.make_external(values, "../secret", offset=0, length=8)
    tensor = onnx.SparseTensorProto(dims=[4], values=values)
    tensor.indices.CopyFrom(numpy_helper.from_array(np.array([0, 1], np.int64), "indices"))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["c"], sparse_value=tensor))


def constant(model: onnx.ModelProto, folder: Path) -> None:
    tensor = numpy_helper.from_array(np.ones(2, np.float32), "value")
    h.make_external(tensor, "../secret", offset=0, length=8)
    model.graph.node.insert(0, helper.make_node("Constant", [], ["c"], value=tensor))


def in_function(model: onnx.ModelProto, folder: Path) -> None:
    tensor = numpy_helper.from_array(np.ones((), np.float32), "value")
    h.make_external(tensor, "../secret", offset=0, length=4)
    inner = [
        helper.make_node("Constant", [], ["c"], value=tensor),
        helper.make_node("Add", ["a", "c"], ["b"]),
    ]
    model.functions.append(helper.make_function("f", "More", ["a"], ["b"], inner, model.opset_import))
    model.opset_import.append(helper.make_opsetid("f", 1))
    model.graph.node.insert(0, helper.make_node("More", ["x"], ["more"], domain="f"))


def dims(*axes: int) -> Change:
    return lambda model, folder: first(model).dims.__setitem__(slice(None), axes)


def sides(size: int) -> Change:
    def change(model: onnx.ModelProto, folder: Path) -> None:
        for value in (model.graph.input[0], model.graph.output[0]):
            value.type.tensor_type.shape.dim[2].dim_value = size

    return change


def number(value: float) -> Change:
    def change(model: onnx.ModelProto, folder: Path) -> None:
        weights = numpy_helper.to_array(first(model)).copy()
        weights[1] = value
        first(model).raw_data = weights.tobytes()

    return change


def bomb(model: onnx.ModelProto, folder: Path) -> None:
    """A graph of a few bytes that asks for 4 TiB when it is run."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([2**40], np.int64), "size"))
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["size"], ["giant"]))
    model.graph.node.insert(1, helper.make_node("ReduceSum", ["giant"], ["sum"], keepdims=0))
    model.graph.node[-1].input[0] = "more"
    model.graph.node.insert(len(model.graph.node) - 1, helper.make_node("Add", ["convolved", "sum"], ["more"]))


ONNX_CASES: dict[str, tuple[Change, str]] = {
    "location ../": (outside("../secret"), "weights: external data: got location '../secret', expected a plain name"),
    "location absolute": (outside("/etc/passwd"), "weights: external data: got location '/etc/passwd'"),
    "location device": (outside("/dev/zero"), "weights: external data: got location '/dev/zero'"),
    "symlink": (link(os.symlink), "weights: external data: w: "),
    "hard link": (link(os.link), "weights: external data: w: is a link or no file"),
    "offset past the end": (at(4, 36), "external data: w: got bytes 4 to 40, but it is 36 bytes long"),
    "offset below zero": (at(-4, 36), "external data: got offset '-4', expected a whole number"),
    "offset giant": (at(2**62, 36), "external data: w: got bytes"),
    "length below zero": (at(0, -36), "external data: got length '-36', expected a whole number"),
    "length giant": (at(0, 2**40), "external data: got length 1099511627776, expected 36"),
    "tensors overlap": (overlapping, "external data: w: its tensors take 72 bytes of 36, so they overlap"),
    "in a sparse constant": (sparse, "onnx.checker refuses it"),
    "in a constant": (constant, "value: external data: got location '../secret'"),
    "in a function": (in_function, "value: external data: got location '../secret'"),
    "giant dims": (dims(2**31, 2**31), "weights: its data does not fill its shape"),
    "dims below zero": (dims(-1), "weights: got shape [-1]"),
    "giant input": (sides(2**50), "sample_shape: got (3, 1125899906842624, 4), expected axes of at least 1, 268435456"),
    "empty input": (sides(0), "sample_shape: got (3, 0, 4)"),
    "graph asks for terabytes": (bomb, "Failed to allocate memory"),
    "weight NaN": (number(np.nan), "weights: holds NaN or infinity"),
    "weight infinite": (number(np.inf), "weights: holds NaN or infinity"),
}  # fmt: skip


@pytest.mark.parametrize("case", ONNX_CASES)
def test_hostile_onnx_file(refused: Refused, tmp_path: Path, case: str) -> None:
    change, message = ONNX_CASES[case]
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(first(h.tiny_onnx()).raw_data)
    model = h.tiny_onnx()
    change(model, folder)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    assert message in refused(export, folder / "m.onnx", *h.SAID)


def test_the_onnx_file_of_these_tests_exports_and_may_have_its_weights_beside_it(tmp_path: Path) -> None:
    for name, change in {"inside": lambda model, folder: None, "beside": at(0, 36)}.items():
        model = h.tiny_onnx()
        change(model, tmp_path)
        (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
        assert export([str(tmp_path / "m.onnx"), *h.SAID, "--out", str(tmp_path / name)]) == 0
    inside, beside = (onnx.load(tmp_path / name / "denoiser.fp32.onnx").graph for name in ("inside", "beside"))
    assert inside.initializer[0].raw_data == beside.initializer[0].raw_data != b""


# -- numbers that make no sense ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_name_the_tensor(refused: Refused, tmp_path: Path, value: float) -> None:
    folder = h.diffusers_folder(tmp_path / "model", {SAFETENSORS: one_number(value)})
    assert "conv_in.weight: holds NaN or infinity" in refused(export, folder)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"alphas_cumprod": [0.9, 0.8, 0.85]}, "alphas_cumprod[2] = 0.85 is not below [1] = 0.8"),
        ({"alpha": [0.9, 0.8], "sigma": [0.4, 0.6, 0.9]}, "alpha, sigma: got shapes (2,), (3,)"),
        ({"alpha": [0.9, 0.95], "sigma": [0.4, 0.3]}, "signal-to-noise ratio must fall with t"),
        ({"betas": [0.1, 1.5]}, "betas[1]: got 1.5, expected a number in (0, 1]"),
        ({"betas": []}, "schedule: "),
        ({"betas": [[0.1], [0.2]]}, "betas: got shape (2, 1), expected (T,)"),
    ],
)
def test_schedule_that_contradicts_itself(refused: Refused, tmp_path: Path, said: dict[str, Any], message: str) -> None:
    (tmp_path / "m.onnx").write_bytes(h.tiny_onnx().SerializeToString())
    kind = "alpha_sigma" if "sigma" in said else next(iter(said))
    values = {"kind": kind, **said}
    table = "{" + ", ".join(f"{name} = {json.dumps(value)}" for name, value in values.items()) + "}"
    arguments = [tmp_path / "m.onnx", *h.SAID, "--set", f"source.schedule={table}"]
    assert message in refused(export, *arguments)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"trained_betas": [0.1] * 7}, "trained_betas: got 7 of them, expected 20 numbers"),
        ({"trained_betas": [0.1, 2.0], "num_train_timesteps": 2}, "trained_betas: got 2.0"),
        ({"num_train_timesteps": 10**12}, "num_train_timesteps"),
        ({"num_train_timesteps": -1}, "num_train_timesteps"),
        ({"beta_start": "much"}, "beta_start"),
        ({"beta_end": 7.0}, "betas["),
    ],
)
def test_scheduler_that_contradicts_itself(
    refused: Refused, tmp_path: Path, scheduler: dict[str, Any], message: str
) -> None:
    folder = sound_folder(tmp_path / "model", **scheduler)
    line = refused(export, folder)
    assert "scheduler_config.json" in line
    assert message in line


def sound_folder(folder: Path, **scheduler: Any) -> Path:
    """A diffusers folder whose weights fit its configuration."""
    from safetensors.torch import save

    diffusers = pytest.importorskip("diffusers", reason="writes the weights")
    config = {name: value for name, value in h.DIFFUSERS_CONFIG.items() if not name.startswith("_")}
    weights = save(dict(diffusers.UNet2DModel(**config).state_dict()))
    return h.diffusers_folder(folder, {SAFETENSORS: weights}, **scheduler)


# -- places that cannot be written ------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--out", "--plot"])
def test_empty_path_is_refused_and_not_taken_for_the_working_directory(
    refused: Refused, tmp_path: Path, flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.onnx").write_bytes(h.tiny_onnx().SerializeToString())
    monkeypatch.chdir(tmp_path)
    extra = [] if flag == "--out" else ["--out", tmp_path / "b"]
    assert f"argument {flag}: got an empty path" in refused(export, "m.onnx", *h.SAID, flag, "", *extra, out=None)


def test_old_bundle_survives_every_refusal(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(h.tiny_onnx().SerializeToString())
    assert export([str(tmp_path / "m.onnx"), *h.SAID, "--out", str(tmp_path / "out")]) == 0
    digest = read_bundle(tmp_path / "out").digest
    model = h.tiny_onnx()
    number(np.nan)(model, tmp_path)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    refused(export, tmp_path / "m.onnx", *h.SAID)
    assert read_bundle(tmp_path / "out").digest == digest
    shutil.rmtree(tmp_path / "out")
