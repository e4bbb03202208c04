"""Triton model repositories: every field against Triton's own schema and the graph's real signature."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

onnx = pytest.importorskip("onnx", reason="writes the graphs")
ort = pytest.importorskip("onnxruntime", reason="reads the graphs' real signatures")

from toy_denoisers import session, toy, toy_inputs  # noqa: E402

from ddpm_deploy import bundle as b  # noqa: E402
from ddpm_deploy.bundle import write as writing  # noqa: E402
from ddpm_deploy.errors import BundleError, ExportError  # noqa: E402
from ddpm_deploy.export.onnx_signature import Signature, read_signature  # noqa: E402
from ddpm_deploy.export.sampler_graph import build_sampler  # noqa: E402
from ddpm_deploy.export.step import build_step  # noqa: E402
from ddpm_deploy.export.triton import Serving, write_model_repository  # noqa: E402
from ddpm_deploy.export.unrolled import build_unrolled  # noqa: E402
from ddpm_deploy.schedule import NoiseSchedule  # noqa: E402
from ddpm_deploy.solvers import make_plan  # noqa: E402

SHAPE = (3, 8)
SCHEDULE = NoiseSchedule.linear(20, 1e-3, 0.2)
GPU = Serving(instance_kind="KIND_GPU")
ORT_DTYPES = {"tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64"}
MODEL = toy(SHAPE, steered=True).SerializeToString()
TABLES = {"t", "predict", "clip", "update", "noise"}


def graphs() -> dict[tuple[str, str], Any]:
    """(role, target) to ONNX model."""
    denoiser, inputs = toy(SHAPE, steered=True), toy_inputs(SHAPE, steered=True)
    plan = make_plan("ddim", SCHEDULE, 4)
    about: dict[str, Any] = {"inputs": inputs, "sample_shape": SHAPE}
    common = about | {"learned_variance": False}
    return {
        ("denoiser", "onnx"): denoiser,
        ("step", "onnxruntime-cuda"): build_step(denoiser, **common, state_size=2, target="onnxruntime-cuda"),
        ("sampler", "onnxruntime-cpu"): build_sampler(denoiser, **common, target="onnxruntime-cpu", default_plan=plan),
        ("sampler", "tensorrt"): build_sampler(denoiser, **common, target="tensorrt", default_plan=None),
        ("sampler", "onnxruntime-cuda"): build_unrolled(denoiser, **about, plan=plan, target="onnxruntime-cuda"),
    }


@pytest.fixture(scope="module")
def models() -> dict[tuple[str, str], Any]:
    return graphs()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, models: dict[tuple[str, str], Any]) -> b.Bundle:
    return write_bundle(tmp_path_factory.mktemp("triton") / "bundle", models)


def write_bundle(out: Path, models: dict[tuple[str, str], Any], weights: dict[str, bytes] | None = None) -> b.Bundle:
    files = {}
    for (role, target), model in models.items():
        path = f"{role}.fp32.onnx" if target == "onnx" else f"{role}.fp32.{target}.onnx"
        signature = read_signature(model.SerializeToString())
        file = b.ModelFile(path, role, "fp32", target, 18, signature.inputs, signature.outputs)
        files[replace(file, weights=next(iter(weights or {}), None))] = model.SerializeToString()
    manifest = b.Manifest(
        model=b.ModelInfo("toy robot", "1", "Apache-2.0", {}),
        sample_shape=SHAPE,
        output=b.OutputAffine((1.0,), (0.0,), "m/s"),
        prediction="eps",
        variance="small",
        schedule=SCHEDULE,
        clip=None,
        conditions=(b.Condition("steer", (), "float32"),),
        defaults=b.Defaults("ddim", 4, "trailing"),
        network=None,
        files=tuple(files),
        reference=None,
        weights=tuple(b.DataFile(name) for name in weights or {}),
    )
    return b.write_bundle(out, manifest, {file.path: data for file, data in files.items()} | (weights or {}))


@pytest.fixture(scope="module")
def parse() -> Callable[[Path], Any]:
    """Read a model's configuration as Triton does; the package's own import wants a client's dependencies."""
    found = importlib.util.find_spec("tritonclient")
    if found is None or not found.submodule_search_locations:
        pytest.skip("tritonclient, which holds Triton's schema, is not installed")
    path = Path(found.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    schema = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(schema)
    from google.protobuf import text_format

    return lambda folder: text_format.Parse((folder / "config.pbtxt").read_text("ascii"), schema.ModelConfig())


def accepted_by_triton(config: Any, model: Path) -> Any:
    """Check what Triton's ONNX Runtime backend checks when it loads a model; returns the session."""
    opened = session(onnx.load(model))
    required, optional = opened.get_inputs(), opened.get_overridable_initializers()
    assert sum(not io.optional for io in config.input) == len(required)
    check_tensors(config, config.input, {value.name: value for value in (*required, *optional)})
    check_tensors(config, config.output, {value.name: value for value in opened.get_outputs()})
    assert len(config.output) == len(opened.get_outputs())
    if any(io.optional for io in config.input):
        assert config.max_batch_size == 0
    return opened


def check_tensors(config: Any, tensors: Any, values: dict[str, Any]) -> None:
    names = type(config).DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_number
    for io in tensors:
        value = values[io.name]
        assert names[io.data_type].name == ORT_DTYPES[value.type]
        assert len(io.dims) > 0
        dims = list(io.reshape.shape if io.HasField("reshape") else io.dims)
        if io.HasField("reshape"):
            assert np.prod(io.dims) == np.prod(dims)
        batch = [-1] if config.max_batch_size else []
        assert batch + dims == [axis if isinstance(axis, int) else -1 for axis in value.shape]


def kinds(config: Any) -> list[tuple[int, str]]:
    names = type(config.instance_group[0]).DESCRIPTOR.enum_types_by_name["Kind"].values_by_number
    return [(group.count, names[group.kind].name) for group in config.instance_group]


CASES: dict[str, tuple[dict[str, Any], int, set[str]]] = {
    "denoiser": ({"graph": "denoiser"}, 32, set()),
    "step": ({"graph": "step", "serving": GPU}, 32, set()),
    "sampler": ({"graph": "sampler"}, 0, TABLES),
    "sampler of its own plan": ({"graph": "sampler", "fixed_plan": True}, 32, set()),
    "sampler unrolled": ({"graph": "sampler", "serving": GPU}, 32, set()),
    "sampler without defaults": ({"graph": "sampler", "target": "tensorrt", "serving": GPU}, 0, set()),
}


@pytest.mark.parametrize("case", CASES)
def test_the_configuration_is_that_of_the_graph(
    case: str, bundle: b.Bundle, parse: Callable[[Path], Any], tmp_path: Path
) -> None:
    options, batch, optional = CASES[case]
    folder = write_model_repository(bundle, tmp_path / "models", **options)
    config = parse(folder)
    assert (config.name, config.max_batch_size) == (f"toy_robot_{options['graph']}", batch)
    assert folder == tmp_path / "models" / config.name
    assert (config.platform, config.backend) == ("onnxruntime_onnx", "onnxruntime")
    assert {io.name for io in config.input if io.optional} == optional
    assert kinds(config) == [(1, options.get("serving", Serving()).instance_kind)]
    assert config.default_model_filename == "model.onnx"
    accepted_by_triton(config, folder / "1" / "model.onnx")


def test_the_model_file_is_that_of_the_bundle_and_its_origin_is_told(
    bundle: b.Bundle, parse: Callable[[Path], Any], tmp_path: Path
) -> None:
    folder = write_model_repository(bundle, tmp_path)
    file = bundle.file("denoiser", "fp32")
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == ["1", "1/model.onnx", "config.pbtxt"]
    assert (folder / "1" / "model.onnx").read_bytes() == bundle.open_bytes(file)
    told = {key: value.string_value for key, value in parse(folder).parameters.items()}
    assert told == {
        "ddpm_deploy.bundle": bundle.digest,
        "ddpm_deploy.file": "denoiser.fp32.onnx",
        "ddpm_deploy.sha256": file.sha256,
    }


def test_the_dimensions_leave_the_batch_out_and_give_one_number_an_axis(
    bundle: b.Bundle, parse: Callable[[Path], Any], tmp_path: Path
) -> None:
    inputs = {io.name: io for io in parse(write_model_repository(bundle, tmp_path)).input}
    assert list(inputs["x"].dims) == [3, 8]
    assert not inputs["x"].HasField("reshape")
    for name in ("t", "steer"):
        assert list(inputs[name].dims) == [1]
        assert inputs[name].HasField("reshape")
        assert list(inputs[name].reshape.shape) == []


def test_without_batches_all_axes_are_told_and_the_free_ones_are_minus_one(
    bundle: b.Bundle, parse: Callable[[Path], Any], tmp_path: Path
) -> None:
    config = parse(write_model_repository(bundle, tmp_path, graph="sampler"))
    dims = {io.name: list(io.dims) for io in (*config.input, *config.output)}
    assert dims["x_T"] == dims["samples"] == [-1, 3, 8]
    assert (dims["predict"], dims["update"], dims["noise"]) == ([-1, 2], [-1, -1, -1], [-1, -1, -1, -1])
    assert dims["steer"] == [-1]


def test_batching_and_queue_limits_are_as_asked(bundle: b.Bundle, parse: Callable[[Path], Any], tmp_path: Path) -> None:
    serving = Serving(
        max_batch_size=16,
        preferred_batch_sizes=(4, 16),
        max_queue_delay_us=500,
        max_queue_size=64,
        timeout_us=2_000_000,
        timeout_action="DELAY",
        allow_timeout_override=False,
        instance_count=2,
    )
    config = parse(write_model_repository(bundle, tmp_path, serving=serving))
    batching, policy = config.dynamic_batching, config.dynamic_batching.default_queue_policy
    assert config.max_batch_size == 16
    assert list(batching.preferred_batch_size) == [4, 16]
    assert batching.max_queue_delay_microseconds == 500
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (64, 2_000_000)
    assert policy.TimeoutAction.Name(policy.timeout_action) == "DELAY"
    assert not policy.allow_timeout_override
    assert kinds(config) == [(2, "KIND_CPU")]


def test_a_queue_has_limits_even_where_nothing_is_batched(
    bundle: b.Bundle, parse: Callable[[Path], Any], tmp_path: Path
) -> None:
    config = parse(write_model_repository(bundle, tmp_path, graph="sampler", serving=Serving(max_queue_size=7)))
    assert config.max_batch_size == 0
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 7
    assert not config.dynamic_batching.preferred_batch_size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"graph": "sampler", "serving": Serving(max_batch_size=8)}, "max_batch_size: got 8, expected 0"),
        ({"serving": Serving(max_batch_size=8, preferred_batch_sizes=(9,))}, "preferred_batch_sizes: got 9, .* 8"),
        ({"fixed_plan": True}, "fixed_plan: denoiser.fp32.onnx holds no plan"),
        ({"name": "../toy"}, "name: got '../toy'"),
        ({"engine": "model.plan"}, "instance_kind: got KIND_CPU, expected KIND_GPU"),
    ],
    ids=["batch", "preferred", "plan", "name", "engine"],
)
def test_what_the_graph_cannot_do_is_refused(
    bundle: b.Bundle, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_model_repository(bundle, tmp_path / "models", **options)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"max_batch_size": -1},
        {"preferred_batch_sizes": (0,)},
        {"max_queue_size": 2.5},
        {"timeout_us": True},
        {"timeout_action": "DROP"},
        {"instance_kind": "KIND_TPU"},
        {"instance_count": 0},
    ],
)
def test_a_bad_setting_is_refused_by_name(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(change))}: got"):
        Serving(**change)


def test_a_graph_that_the_bundle_lacks_is_refused(bundle: b.Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="has no step fp32 for onnxruntime-cpu"):
        write_model_repository(bundle, tmp_path, graph="step")


def test_an_engine_goes_in_the_place_of_its_graph(
    bundle: b.Bundle, parse: Callable[[Path], Any], tmp_path: Path
) -> None:
    engine = tmp_path / "some.engine"
    with pytest.raises(ExportError, match=r"some\.engine: cannot be read"):
        write_model_repository(bundle, tmp_path / "models", engine=engine, serving=GPU)
    engine.write_bytes(b"a plan")
    folder = write_model_repository(bundle, tmp_path / "models", graph="sampler", engine=engine, serving=GPU)
    config = parse(folder)
    assert (config.platform, config.backend) == ("tensorrt_plan", "tensorrt")
    assert config.default_model_filename == "model.plan"
    assert [path.name for path in (folder / "1").iterdir()] == ["model.plan"]
    assert (folder / "1" / "model.plan").read_bytes() == b"a plan"
    graph = read_signature(bundle.open_bytes(bundle.file("sampler", "fp32", "tensorrt")))
    assert [io.name for io in config.input] == [spec.name for spec in graph.inputs]
    assert config.parameters["ddpm_deploy.file"].string_value == "sampler.fp32.tensorrt.onnx"


def test_the_written_model_runs_with_the_tensors_that_the_configuration_names(
    bundle: b.Bundle, parse: Callable[[Path], Any], tmp_path: Path
) -> None:
    whole = write_model_repository(bundle, tmp_path, graph="sampler", name="whole")
    fixed = write_model_repository(bundle, tmp_path, graph="sampler", name="fixed", fixed_plan=True)
    x_T, steer = np.random.default_rng(0).standard_normal((5, *SHAPE)).astype(np.float32), np.ones(5, np.float32)
    plan = make_plan("ddim", SCHEDULE, 4)
    tables = {name: getattr(plan, name).astype(np.float32) for name in ("t", "predict", "clip", "update")}
    feeds = {"x_T": x_T, "steer": steer}
    (short,) = accepted_by_triton(parse(fixed), fixed / "1" / "model.onnx").run(["samples"], feeds)
    full = feeds | tables | {"noise": np.zeros((4, 1, 1, 1), np.float32)}
    assert {io.name for io in parse(whole).input} == set(full)
    assert {io.name for io in parse(fixed).input} == set(feeds)
    (long,) = accepted_by_triton(parse(whole), whole / "1" / "model.onnx").run(["samples"], full)
    np.testing.assert_allclose(short, long, rtol=0, atol=1e-6)
    assert short.std() > 0.1


def test_weights_in_a_file_of_their_own_travel_with_the_model(
    models: dict[tuple[str, str], Any], tmp_path: Path
) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(models["denoiser", "onnx"])
    tensor = next(t for t in model.graph.initializer if t.name == "state")
    data = tensor.raw_data
    onnx.external_data_helper.set_external_data(tensor, "weights.bin", length=len(data))
    tensor.ClearField("raw_data")
    stored = write_bundle(tmp_path / "bundle", {("denoiser", "onnx"): model}, {"weights.bin": data})
    folder = write_model_repository(stored, tmp_path / "models")
    assert sorted(path.name for path in (folder / "1").iterdir()) == ["model.onnx", "weights.bin"]
    feeds = {"x": np.ones((2, *SHAPE), np.float32), "t": np.zeros(2, np.float32), "steer": np.zeros(2, np.float32)}
    (found,) = ort.InferenceSession(folder / "1" / "model.onnx", providers=["CPUExecutionProvider"]).run(None, feeds)
    np.testing.assert_array_equal(found, session(models["denoiser", "onnx"]).run(None, feeds)[0])


def test_the_signature_read_without_onnx_is_that_of_onnx_runtime(models: dict[tuple[str, str], Any]) -> None:
    for model in models.values():
        opened, signature = session(model), read_signature(model.SerializeToString())
        values = {v.name: v for v in (*opened.get_inputs(), *opened.get_overridable_initializers())}
        assert {spec.name for spec in signature.inputs} == set(values)
        assert signature.defaults == {value.name for value in opened.get_overridable_initializers()}
        for spec in (*signature.inputs, *signature.outputs):
            value = values.get(spec.name) or {v.name: v for v in opened.get_outputs()}[spec.name]
            assert list(spec.shape) == value.shape
            assert f"tensor({spec.dtype.removesuffix('32')})" == value.type


@given(st.binary(max_size=200), st.integers(0, 10_000), st.booleans())
@settings(max_examples=300, deadline=None)
def test_bytes_that_are_no_model_end_in_an_export_error(noise: bytes, cut: int, mixed: bool) -> None:
    whole = MODEL if mixed else b""
    for data in (whole[:cut] + noise, whole[:cut] + noise + whole[cut + len(noise) :]):
        with contextlib.suppress(ExportError):
            assert isinstance(read_signature(data), Signature)
    with pytest.raises(ExportError, match="no ONNX model"):
        read_signature(b"\x00" + noise)


# -- writing ----------------------------------------------------------------------------------------------------------


def test_models_stand_side_by_side_and_each_is_replaced_as_a_whole(bundle: b.Bundle, tmp_path: Path) -> None:
    one = write_model_repository(bundle, tmp_path / "models")
    two = write_model_repository(bundle, tmp_path / "models", graph="sampler")
    before = (one / "config.pbtxt").read_text()
    write_model_repository(bundle, tmp_path / "models", serving=Serving(max_batch_size=4))
    assert (one / "config.pbtxt").read_text() == before.replace("max_batch_size: 32", "max_batch_size: 4")
    assert sorted((tmp_path / "models").iterdir()) == sorted([one, two])
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_the_unfinished_folder_never_lies_in_the_repository(
    bundle: b.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    plain = writing.write_new
    monkeypatch.setattr(
        writing, "write_new", lambda p, d: seen.append(list((tmp_path / "models").iterdir())) or plain(p, d)
    )
    write_model_repository(bundle, tmp_path / "models")
    assert seen == [[], []]


def test_a_full_disk_leaves_the_old_model_and_says_so(
    bundle: b.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model_repository(bundle, tmp_path / "models")
    before = (folder / "config.pbtxt").read_text()

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing, "write_new", full)
    with pytest.raises(ExportError, match="No space left on device; free some space"):
        write_model_repository(bundle, tmp_path / "models", serving=Serving(max_batch_size=4))
    assert (folder / "config.pbtxt").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_what_dead_writers_left_is_removed(bundle: b.Bundle, tmp_path: Path) -> None:
    (tmp_path / ".models.toy.0123456789abcdef.new").mkdir()
    write_model_repository(bundle, tmp_path / "models", name="toy")
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


@pytest.mark.parametrize("content", ["config.pbtxt", "notes.txt", "a file"])
def test_a_foreign_model_is_not_replaced(bundle: b.Bundle, tmp_path: Path, content: str) -> None:
    foreign = tmp_path / "toy"
    if content == "a file":
        foreign.write_text("mine")
    else:
        foreign.mkdir()
        (foreign / content).write_text('name: "toy"')
    with pytest.raises(ExportError, match="was not written by this package"):
        write_model_repository(bundle, tmp_path, name="toy")
    assert foreign.is_file() or [path.name for path in foreign.iterdir()] == [content]


def test_a_second_version_beside_ours_is_kept(bundle: b.Bundle, tmp_path: Path) -> None:
    folder = write_model_repository(bundle, tmp_path)
    (folder / "2").mkdir()
    with pytest.raises(ExportError, match="holds '2'"):
        write_model_repository(bundle, tmp_path)
    assert (folder / "2").is_dir()


LIGHT = """
import json, sys
from ddpm_deploy.bundle import read_bundle
from ddpm_deploy.export.triton import write_model_repository
write_model_repository(read_bundle(sys.argv[1]), sys.argv[2], graph="sampler", fixed_plan=True)
print(json.dumps(sorted({"torch", "onnx", "onnxruntime", "google"} & set(sys.modules))))
"""


def test_it_needs_neither_torch_nor_onnx_nor_protobuf(bundle: b.Bundle, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIGHT, str(bundle.root), str(tmp_path / "models")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


# -- the guide --------------------------------------------------------------------------------------------------------


class Stand:
    """What the guide's client needs of tritonclient, with ONNX Runtime in the place of the server."""

    class InferInput:
        def __init__(self, name: str, shape: Any, datatype: str) -> None:
            self.name, self.shape, self.datatype = name, tuple(shape), datatype

        def set_data_from_numpy(self, array: Any) -> None:
            types = {"FP32": np.float32, "INT64": np.int64}
            assert (array.shape, array.dtype) == (self.shape, types[self.datatype])
            self.array = array

    class InferenceServerClient:
        def __init__(self, url: str) -> None:
            self.url = url

        def infer(self, model: str, inputs: Any) -> Any:
            opened = ort.InferenceSession(
                Path("models") / model / "1" / "model.onnx", providers=["CPUExecutionProvider"]
            )
            ranks = {value.name: len(value.shape) for value in opened.get_inputs()}
            feeds = {given.name: given.array.reshape(given.shape[: ranks[given.name]]) for given in inputs}
            results = dict(zip([v.name for v in opened.get_outputs()], opened.run(None, feeds), strict=True))
            return SimpleNamespace(as_numpy=results.__getitem__)


def test_the_guide_draws_the_samplers_own_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ddpm_deploy import Sampler

    guide = (Path(__file__).parents[2] / "docs" / "triton.md").read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "tritonclient", SimpleNamespace(http=Stand))
    monkeypatch.setitem(sys.modules, "tritonclient.http", Stand)
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", guide, re.DOTALL | re.MULTILINE):
        exec(compile(block, "triton.md", "exec"), names)
    assert names["folder"] == Path("models/digits_denoiser")
    with Sampler.load(names["bundle"], threads=1) as sampler:
        expected = sampler.sample(4, solver="unipc", steps=12, condition={"labels": names["labels"]})
    np.testing.assert_allclose(names["samples"], expected, rtol=0, atol=1e-5)
    for name in ("denoiser", "step", "sampler", *vars(Serving())):
        assert f"`{name}`" in guide
