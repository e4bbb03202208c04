"""Folders that diffusers wrote give the network that diffusers has, with and without diffusers."""

from __future__ import annotations

import contextlib
import inspect
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ddpm_deploy.bundle import Condition
from ddpm_deploy.errors import ExportError
from ddpm_deploy.export.sources import Settings, open_source
from ddpm_deploy.export.sources.files import read_weights
from ddpm_deploy.model import UNet, build_network
from ddpm_deploy.model.diffusers_weights import read_config

diffusers = pytest.importorskip("diffusers", reason="writes the folders")

CIFAR10: dict[str, Any] = {  # as in the config.json of google/ddpm-cifar10-32
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
    "norm_eps": 1e-6,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "downsample_padding": 0,
}
PICTURES256: dict[str, Any] = CIFAR10 | {
    "sample_size": 256,
    "block_out_channels": (128, 128, 256, 256, 512, 512),
    "down_block_types": ("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
}
SMALL: dict[str, Any] = CIFAR10 | {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
}
SKIPS = SMALL | {  # blocks that our U-Net has not
    "block_out_channels": (32, 32),
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
}
WEIGHTS = "diffusion_pytorch_model.safetensors"
BIN = "diffusion_pytorch_model.bin"


def make(config: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(**config).eval()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return unet


def save(unet: Any, folder: Path, layout: str, scheduler: Any = None, **options: Any) -> Path:
    scheduler = scheduler or diffusers.DDPMScheduler(variance_type="fixed_large")
    if layout == "nested":
        diffusers.DDPMPipeline(unet, scheduler).save_pretrained(folder, **options)
    else:
        unet.save_pretrained(folder, **options)
        scheduler.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def small() -> Any:
    return make(SMALL)


@pytest.fixture
def folder(small: Any, tmp_path: Path) -> Path:
    """A flat folder of a small U-Net."""
    return save(small, tmp_path / "model", "flat")


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@torch.no_grad()
def relative_error(source: Any, unet: Any, batch: int = 3, size: int | None = None) -> float:
    torch.manual_seed(1)
    size = size or unet.config["sample_size"]
    x = torch.randn(batch, unet.config["in_channels"], size, size)
    t = torch.linspace(999.0, 0.25, batch)
    classes = unet.config["num_class_embeds"]
    labels = torch.arange(batch) % classes if classes else None
    steering = {} if labels is None else {"labels": labels}
    expected = unet(x, t, class_labels=labels).sample
    return float((source.network(x, t, **steering) - expected).norm() / expected.norm())


# -- the paper's configurations ---------------------------------------------------------------------------------------


def test_cifar10_in_both_layouts_equals_diffusers(tmp_path: Path) -> None:
    unet = make(CIFAR10)
    flat = open_source(str(save(unet, tmp_path / "flat", "flat")))
    nested = open_source(str(save(unet, tmp_path / "nested", "nested", max_shard_size="50MB")))
    assert (tmp_path / "nested" / "unet" / f"{WEIGHTS}.index.json").is_file()
    assert sum(p.numel() for p in flat.network.parameters()) == 35_746_307
    assert relative_error(flat, unet, batch=1) <= 1e-5
    ours = flat.network.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in nested.network.state_dict().items())
    assert (flat.sample_shape, flat.variance, flat.clip) == ((3, 32, 32), "large", (-1.0, 1.0))
    assert flat.spec == UNet(read_config(CIFAR10)).spec()


def test_the_256_configuration_has_the_papers_number_of_parameters_and_the_same_names() -> None:
    from ddpm_deploy.model.diffusers_weights import read_weights

    with torch.device("meta"):
        theirs, ours = diffusers.UNet2DModel(**PICTURES256), UNet(read_config(PICTURES256))
    assert sum(p.numel() for p in ours.parameters()) == 113_673_219
    renamed = {name: tuple(tensor.shape) for name, tensor in read_weights(theirs.state_dict()).items()}
    assert renamed == {name: tuple(tensor.shape) for name, tensor in ours.state_dict().items()}


def test_six_levels_as_in_the_256_configuration_equal_diffusers(tmp_path: Path) -> None:
    thin = PICTURES256 | {"block_out_channels": (8, 8, 16, 16, 32, 32), "norm_num_groups": 8, "sample_size": 64}
    unet = make(thin)
    source = open_source(str(save(unet, tmp_path / "model", "nested")))
    assert source.sample_shape == (3, 64, 64)
    assert relative_error(source, unet) <= 1e-5


@pytest.mark.parametrize("layout", ["flat", "nested"])
def test_bin_weights_give_the_same_network(small: Any, tmp_path: Path, layout: str) -> None:
    folder = save(small, tmp_path / "model", layout, safe_serialization=False)
    assert (folder / ("unet" if layout == "nested" else ".") / BIN).is_file()
    assert relative_error(open_source(str(folder)), small) <= 1e-5


def test_safetensors_are_preferred_to_bin(folder: Path, small: Any) -> None:
    (folder / BIN).write_bytes(b"no torch file at all")
    assert relative_error(open_source(str(folder)), small) <= 1e-5


def test_the_spec_builds_the_network_again(folder: Path) -> None:
    source = open_source(str(folder))
    build_network(source.spec).load_state_dict(source.network.state_dict())


def test_old_attention_names_and_a_missing_head_size_are_read(folder: Path, small: Any) -> None:
    renames = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    old = {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        for new_name, old_name in renames.items():
            name = name.replace(new_name, old_name)
        old[name] = tensor
    save_file(old, folder / WEIGHTS)
    config = json.loads((folder / "config.json").read_text())
    del config["attention_head_dim"]
    (folder / "config.json").write_text(json.dumps(config))
    assert relative_error(open_source(str(folder)), small) <= 1e-5


def test_the_cache_of_hugging_face_is_followed_and_gives_the_repositorys_name(folder: Path, small: Any) -> None:
    blobs = folder.parent / "models--me--ddpm-tiny" / "blobs"
    snapshot = blobs.parent / "snapshots" / "0123abcd"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / str(i))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(i))
    source = open_source(str(snapshot))
    assert source.name == "ddpm-tiny"
    assert relative_error(source, small) <= 1e-5


def test_classes_become_the_condition_labels(tmp_path: Path) -> None:
    unet = make(SMALL | {"num_class_embeds": 3})
    folder = save(unet, tmp_path / "model", "flat")
    named = Settings(conditions=[{"name": "labels", "dtype": "int64", "classes": ["cat", "dog", "owl"]}])
    assert open_source(str(folder)).conditions == (Condition("labels", (), "int64", ("0", "1", "2")),)
    source = open_source(str(folder), named)
    assert source.conditions[0].classes == ("cat", "dog", "owl")
    assert relative_error(source, unet) <= 1e-5
    guided = {"name": "labels", "dtype": "int64", "classes": ["cat", "dog"], "null": 2}
    assert open_source(str(folder), Settings(conditions=[guided])).conditions[0].null == 2
    with pytest.raises(ExportError, match="labels: got 1 classes, expected 3"):
        open_source(str(folder), Settings(conditions=[{"name": "labels", "dtype": "int64", "classes": ["a"]}]))


def test_a_learned_variance_needs_twice_the_channels(tmp_path: Path) -> None:
    unet = make(SMALL | {"out_channels": 6})
    learned = diffusers.DDPMScheduler(variance_type="learned_range")
    source = open_source(str(save(unet, tmp_path / "model", "flat", learned)))
    assert source.variance == "learned"
    assert relative_error(source, unet) <= 1e-5
    with pytest.raises(ExportError, match=r"out_channels: got 6, expected 3 .*learned_range"):
        open_source(str(save(unet, tmp_path / "other", "flat")))


# -- through diffusers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"resnet_time_scale_shift": "scale_shift"},
        {"center_input_sample": True, "act_fn": "relu"},
        {"num_class_embeds": 4},
    ],
    ids=lambda options: "+".join(options) or "blocks",
)
def test_other_blocks_and_options_go_through_diffusers(tmp_path: Path, options: dict[str, Any]) -> None:
    unet = make(SKIPS | options)
    source = open_source(str(save(unet, tmp_path / "model", "nested")))
    assert source.spec is None
    assert source.provenance["network"] == "diffusers UNet2DModel"
    assert relative_error(source, unet) <= 1e-6


def test_a_table_of_times_is_read_at_the_nearest_timestep(tmp_path: Path) -> None:
    unet = make(SMALL | {"time_embedding_type": "learned", "num_train_timesteps": 10})
    source = open_source(str(save(unet, tmp_path / "model", "flat")))
    assert source.provenance["integer_timestep"] is True
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        got = source.network(x, torch.tensor([2.2, 6.8]))
        assert torch.equal(got, unet(x, torch.tensor([2, 7])).sample)


def test_a_flow_matching_network_sees_sigma_as_its_time(folder: Path, small: Any) -> None:
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder)
    source = open_source(str(folder))
    assert (source.prediction, source.spec) == ("flow", None)
    t = torch.tensor([0.0, 3.5, 500.25, 999.0])
    x = torch.randn(4, 3, 8, 8)
    _, sigma = source.schedule.at(t.numpy())
    with torch.no_grad():
        expected = small(x, torch.tensor(1000 * sigma, dtype=torch.float32)).sample
        assert float((source.network(x, t) - expected).norm() / expected.norm()) <= 1e-5


WITHOUT = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "diffusers":
            raise ImportError("No module named 'diffusers'")
sys.meta_path.insert(0, Blocked())
from ddpm_deploy.errors import ExportError
from ddpm_deploy.export.sources import open_source
for folder in sys.argv[1:]:
    try:
        source = open_source(folder)
        print(sum(p.numel() for p in source.network.parameters()), source.prediction)
    except ExportError as error:
        print(error)
assert "diffusers" not in sys.modules
"""


def test_without_diffusers_our_blocks_load_and_others_name_the_command(tmp_path: Path, small: Any) -> None:
    ours = save(small, tmp_path / "ours", "nested")
    theirs = save(make(SKIPS), tmp_path / "theirs", "nested")
    command = [sys.executable, "-c", WITHOUT, str(ours), str(theirs)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    loaded, refused = done.stdout.splitlines()
    assert loaded == f"{sum(p.numel() for p in small.parameters())} eps"
    assert "ResnetDownsampleBlock2D" in refused
    assert 'pip install "diffusers' in refused


def test_the_digest_of_shards_is_of_their_contents(small: Any, tmp_path: Path) -> None:
    folder = save(small, tmp_path / "model", "flat", max_shard_size="50KB")
    before = open_source(str(folder)).provenance["weights_sha256"]
    shard = sorted(folder.glob("diffusion_pytorch_model-*.safetensors"))[-1]
    save_file({name: tensor + 1 for name, tensor in load_file(shard).items()}, shard)
    assert open_source(str(folder)).provenance["weights_sha256"] != before


# -- what the user says -----------------------------------------------------------------------------------------------


def test_settings_overrule_the_folder(folder: Path) -> None:
    said = {"sample_shape": [3, 16, 16], "schedule": {"kind": "cosine", "T": 40}, "prediction": "v"}
    output = {"scale": 0.5, "offset": [0.5], "units": "unit"}
    source = open_source(str(folder), Settings(**said, variance="small", clip="none", output=output))
    assert (source.sample_shape, source.schedule.T, source.prediction) == ((3, 16, 16), 40, "v")
    assert (source.variance, source.clip, source.output.offset) == ("small", None, (0.5,))
    assert source.defaults.steps == 40


def test_a_folder_without_a_scheduler_needs_schedule_and_prediction(folder: Path) -> None:
    (folder / "scheduler_config.json").unlink()
    with pytest.raises(ExportError, match="is missing; say schedule and prediction yourself"):
        open_source(str(folder))
    said = Settings(schedule={"kind": "linear", "T": 50}, prediction="eps")
    assert open_source(str(folder), said).schedule.T == 50


@pytest.mark.parametrize(
    ("setting", "value"), [("step", 3), ("x_name", "x"), ("allow_scalar_timestep", True), ("factory_options", {"a": 1})]
)
def test_a_setting_that_would_be_ignored_is_refused(folder: Path, setting: str, value: Any) -> None:
    with pytest.raises(ExportError, match=f"{setting}: of no use to a diffusers folder"):
        open_source(str(folder), Settings(**{setting: value}))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8), (3, 7, 8)])
def test_a_sample_shape_that_the_network_cannot_take_is_refused(folder: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ExportError, match="sample_shape"):
        open_source(str(folder), Settings(sample_shape=shape))


# -- damage and malice ------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_the_pickle_of_a_stranger_is_not_run(folder: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Attack:
        def __reduce__(self) -> Any:
            return (Path.touch, (canary,))

    (folder / WEIGHTS).unlink()
    for write in (
        lambda: torch.save({"w": Attack()}, folder / BIN),
        lambda: (folder / BIN).write_bytes(pickle.dumps(Attack())),
    ):
        write()
        with pytest.raises(ExportError, match=BIN):
            open_source(str(folder))
    assert not canary.exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_safetensors_are_named(folder: Path, share: float) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: int(share * len(data))])
    with pytest.raises(ExportError, match=f"{WEIGHTS}: is no whole safetensors file"):
        open_source(str(folder))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(folder: Path, value: float) -> None:
    state = load_file(folder / WEIGHTS)
    state["conv_in.bias"][3] = value
    save_file(state, folder / WEIGHTS)
    with pytest.raises(ExportError, match=r"conv_in\.bias: holds NaN or infinity"):
        open_source(str(folder))


def test_a_tensor_larger_than_its_file_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({"conv_in.weight": torch.zeros(1).expand(10**9)}, folder / BIN)
    with pytest.raises(ExportError, match="declares 4000000000 bytes"):
        open_source(str(folder))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": ', "null", "\xff", "[" * 100_000])
@pytest.mark.parametrize("name", ["config.json", "scheduler_config.json"])
def test_broken_json_is_named(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text, encoding="latin-1")
    with pytest.raises(ExportError, match=name):
        open_source(str(folder))


def test_a_huge_json_is_not_read(folder: Path) -> None:
    with open(folder / "config.json", "r+b") as stream:
        stream.truncate(20 * 2**20)
    with pytest.raises(ExportError, match=r"config\.json: got more than"):
        open_source(str(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_out_channels": [16, 64]}, "the weights have shape"),
        ({"block_out_channels": [10**6, 10**6]}, "the weights have shape"),
        ({"block_out_channels": [10**9, 10**9]}, "no network that could be built"),
        ({"layers_per_block": 10**9}, "more layers than the weights have tensors"),
        ({"layers_per_block": 2}, "the weights lack"),
        ({"block_out_channels": "wide"}, "config.json"),
        ({"block_out_channels": None}, "config.json"),
        ({"norm_num_groups": 7}, "config.json"),
        ({"down_block_types": ["DownBlock2D"]}, "config.json"),
        ({"dropout": "much"}, "config.json"),
        ({"freq_shift": "a"}, "config.json"),
        ({"surprise": 1}, "surprise: is no option"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type"),
        ({"_class_name": "UNet2DConditionModel"}, "_class_name"),
        ({"sample_size": None}, "sample_size: got None, so give sample_shape"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    edit(folder / "config.json", **change)
    with pytest.raises(ExportError, match=message):
        open_source(str(folder))


def test_a_pipeline_with_more_than_a_unet_is_refused(small: Any, tmp_path: Path) -> None:
    folder = save(small, tmp_path / "model", "nested")
    edit(folder / "model_index.json", vqvae=["diffusers", "VQModel"])
    with pytest.raises(ExportError, match="vqvae: a pipeline with more than a U-Net"):
        open_source(str(folder))


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "", "missing.safetensors"])
def test_shards_lie_beside_their_index(folder: Path, name: str) -> None:
    shutil.move(folder / WEIGHTS, folder.parent / "model.safetensors")
    index = folder / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.bias": name}}))
    with pytest.raises(ExportError, match=r"plain file name|missing\.safetensors"):
        open_source(str(folder))


VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 40)
    | st.floats()
    | st.sampled_from(
        ["", "silu", "default", "timestep", [], [16, 32], [0, 0], [16], {}, ["AttnDownBlock2D", "DownBlock2D"]]
    )
)
FIXTURE = [HealthCheck.function_scoped_fixture]


@settings(max_examples=150, deadline=None, suppress_health_check=FIXTURE)
@given(changes=st.dictionaries(st.sampled_from(sorted(inspect.signature(diffusers.UNet2DModel).parameters)), VALUES))
def test_any_configuration_gives_a_network_or_a_named_refusal(folder: Path, changes: dict[str, Any]) -> None:
    file = folder / "config.json"
    original = file.read_text()
    edit(file, **changes)
    try:
        with contextlib.suppress(ExportError):
            assert open_source(str(folder)).network is not None
    finally:
        file.write_text(original)


@settings(max_examples=150, deadline=None, suppress_health_check=FIXTURE)
@given(data=st.data())
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_weights_give_tensors_or_a_named_refusal(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    path = tmp_path / f"weights{suffix}"
    state = {"first": torch.arange(6.0).reshape(2, 3), "second": torch.ones(4, dtype=torch.float16)}
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    whole = bytearray(path.read_bytes())
    del whole[data.draw(st.integers(0, len(whole))) if data.draw(st.booleans()) else len(whole) :]
    for _ in range(data.draw(st.integers(0, 4)) if whole else 0):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(whole))
    with contextlib.suppress(ExportError):
        assert all(bool(torch.isfinite(tensor).all()) for tensor in read_weights(path).values())


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1000)}, tmp_path / "plain.bin")
    with zipfile.ZipFile(tmp_path / "plain.bin") as plain, zipfile.ZipFile(tmp_path / "bomb.bin", "w") as bomb:
        for member in plain.infolist():
            bomb.writestr(member.filename, plain.read(member), zipfile.ZIP_DEFLATED)
    assert set(read_weights(tmp_path / "plain.bin")) == {"w"}
    with pytest.raises(ExportError, match="is compressed"):
        read_weights(tmp_path / "bomb.bin")


def test_missing_weights_name_what_was_looked_for_and_found(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(ExportError, match=r"expected one of .*fp16\.safetensors; name one as weights"):
        open_source(str(folder))
    chosen = Settings(weights=folder / "diffusion_pytorch_model.fp16.safetensors")
    assert open_source(str(folder), chosen).provenance["weights"].endswith("fp16.safetensors")
