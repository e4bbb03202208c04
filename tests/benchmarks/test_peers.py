"""The outside competitors compute the bundle's own network, and draw its pictures where diffusers can."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers", reason="the peers are built from it")
import torch

from benchmarks import peers
from benchmarks.gpu.models import torch_model
from benchmarks.peers import PeerUnavailable, Setting
from benchmarks.peers.pictures import STRIDE
from ddpm_deploy import Sampler
from ddpm_deploy.bundle import Bundle, Condition, ModelFile, TensorSpec, read_bundle
from ddpm_deploy.model import UNet, UNetConfig
from ddpm_deploy.model.diffusers_weights import read_config, read_weights, write_config, write_weights
from ddpm_deploy.schedule import NoiseSchedule

ROOT = Path(__file__).resolve().parents[2]
SETTING = Setting(threads=1)
SMALL = UNetConfig(3, (16, 32), layers_per_block=1, norm_groups=8)
THIN256 = replace(UNetConfig.pictures256(), block_out_channels=(8, 8, 16, 16, 32, 32), norm_groups=8)

NETWORKS = {
    "CIFAR-10": (UNetConfig.cifar10(), 32),
    "as of 256x256, thin": (THIN256, 64),
    "four heads, all levels attend": (
        replace(SMALL, attention_head_dim=8, down_attention=(True, True), up_attention=(True, True)), 8
    ),
    "no attention, other time": (
        replace(SMALL, middle_attention=False, flip_sin_to_cos=True, freq_shift=0.0, downsample_padding=1), 8
    ),
    "learned variance": (replace(SMALL, out_channels=6, norm_eps=1e-5), 8),
    "three classes": (replace(SMALL, num_classes=3), 8),
}  # fmt: skip


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The packaged model without labels, which the pipelines do not pass on."""
    return torch_model("digits", tmp_path_factory.mktemp("digits")).bundle


@pytest.fixture(scope="module")
def sampler(digits: Bundle) -> Any:
    with Sampler.load(digits, backend="torch", threads=1) as opened:
        yield opened


@pytest.fixture
def step(digits: Bundle) -> Any:
    """Opens a peer for the digits, and closes it again."""
    opened: list[peers.Step] = []

    def open_one(name: str, setting: Setting = SETTING) -> peers.Step:
        opened.append(peers.open_step(name, digits, setting))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def random_network(config: UNetConfig) -> UNet:
    torch.manual_seed(0)
    network = UNet(config).eval()
    with torch.no_grad():  # fresh norms and biases are ones and zeros, which would hide a mix-up
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return network


def torch_bundle(network: UNet, size: int, folder: Path, digits: Bundle) -> Bundle:
    """A bundle of nothing but torch weights, otherwise like the digits."""
    from safetensors.torch import save

    from ddpm_deploy.bundle import write_bundle

    shape, name = (network.config.in_channels, size, size), "denoiser.fp32.torch.safetensors"
    inputs = (TensorSpec("x", ("B", *shape), "float32"), TensorSpec("t", ("B",), "float32"))
    outputs = (TensorSpec("prediction", ("B", *shape), "float32"),)
    file = ModelFile(name, "denoiser", "fp32", "torch", None, inputs, outputs)
    manifest = replace(digits.manifest, sample_shape=shape, network=network.spec(), files=(file,), reference=None)
    write_bundle(folder, manifest, {name: save(network.state_dict())})
    return read_bundle(folder)


def changed(bundle: Bundle, **members: Any) -> Bundle:
    return replace(bundle, manifest=replace(bundle.manifest, **members))


def inputs(shape: tuple[int, ...], batch: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(batch).standard_normal((batch, *shape)).astype(np.float32)
    return x, np.linspace(999.0, 0.25, batch, dtype=np.float32)


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


# -- the network ------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_diffusers_network_predicts_what_ours_does(name: str, tmp_path: Path, digits: Bundle) -> None:
    config, size = NETWORKS[name]
    ours = random_network(config)
    bundle = torch_bundle(ours, size, tmp_path / "bundle", digits)
    x, t = map(torch.from_numpy, inputs(bundle.manifest.sample_shape, 2))
    labels = None if config.num_classes is None else torch.tensor([0, 2])
    theirs = peers.diffusers_network(bundle)(x, t, class_labels=labels).sample
    assert relative(theirs.numpy(), ours(x, t, labels).numpy()) <= 1e-5


@pytest.mark.parametrize("config", [UNetConfig.cifar10(), UNetConfig.pictures256(), UNetConfig.digits()])
def test_configuration_and_weights_survive_the_way_to_diffusers_and_back(config: UNetConfig) -> None:
    from diffusers import UNet2DModel

    with torch.device("meta"):
        ours, theirs = UNet(config).state_dict(), UNet2DModel(**write_config(config, (32, 64)))
    assert read_config(dict(theirs.config)) == replace(config, out_channels=config.in_channels)
    assert tuple(theirs.config["sample_size"]) == (32, 64)
    written = write_weights(ours, theirs.state_dict())
    assert shapes(written) == shapes(theirs.state_dict())
    assert shapes(read_weights(written)) == shapes(ours)


def shapes(weights: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


LEARNED: dict[str, Any] = {"variance": "learned"}
WITHOUT: dict[str, dict[str, Any]] = {
    "does not say how its network is built": {"network": None},
    "of kind 'mlp'": {"network": {"kind": "mlp", "config": {}}},
    "of kind 'policy'": {"network": {"kind": "policy", "config": {}}},
    "time_scale: got 2": {"network": {"kind": "unet", "config": UNetConfig.digits().to_dict() | {"time_scale": 2.0}}},
    "takes labels": {"conditions": (Condition("labels", (), "int64", ("a", "b")),)},
}


@pytest.mark.parametrize("reason", WITHOUT)
def test_a_network_that_diffusers_cannot_run_makes_every_peer_unavailable_for_a_reason(
    reason: str, digits: Bundle
) -> None:
    bundle = changed(digits, **WITHOUT[reason])
    found = peers.available_steps(bundle) | peers.available_pictures(bundle)
    assert all(why is not None and reason in why for why in found.values())
    for name in peers.STEPS:
        with pytest.raises(PeerUnavailable, match=reason.partition(":")[0]):
            peers.open_step(name, bundle)


@pytest.mark.parametrize(
    ("reason", "members", "still"),
    [
        ("'flow'", {"prediction": "flow"}, []),
        ("pure noise", {"schedule": NoiseSchedule.from_alphas_cumprod([0.9, 0.0])}, []),
        ("-1 ... 2", {"clip": (-1.0, 2.0)}, ["diffusers UniPC loop"]),
        ("predicts its variance", LEARNED, ["diffusers DDPMPipeline"]),
    ],
)
def test_a_picture_that_diffusers_schedulers_cannot_draw_is_unavailable_for_a_reason(
    reason: str, members: dict[str, Any], still: list[str], digits: Bundle
) -> None:
    found = peers.available_pictures(changed(digits, **members), SETTING)
    eager = {name: found[name, "fp32"] for name in peers.PICTURES if name.startswith("diffusers")}
    assert [name for name, why in eager.items() if why is None] == still
    assert all(why is None or reason in why for why in eager.values())


def test_a_bundle_without_torch_weights_says_so(digits: Bundle) -> None:
    files = tuple(file for file in digits.manifest.files if file.target != "torch")
    with pytest.raises(PeerUnavailable, match="no weights for diffusers"):
        peers.open_step("diffusers eager", changed(digits, files=files))


# -- one evaluation ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["diffusers eager", "ONNX Runtime, plain export", "OpenVINO, plain export"])
def test_every_peer_predicts_what_the_torch_backend_does(
    name: str, step: Callable[..., peers.Step], digits: Bundle, sampler: Sampler
) -> None:
    reason = peers.available_steps(digits, SETTING)[name, "fp32"]
    if reason is not None:
        pytest.skip(reason)
    static = name == peers.OPENVINO
    peer = step(name, replace(SETTING, batch=3) if static else SETTING)
    results = []
    for batch in (3, 3) if static else (1, 3):
        x, t = inputs(digits.manifest.sample_shape, batch)
        results.append((peer(x, t), sampler.backend.run({"x": x, "t": t})["prediction"]))
    for actual, expected in results:  # compared only now: none may be overwritten by a later call
        assert (actual.dtype, actual.shape, actual.flags.c_contiguous) == (np.float32, expected.shape, True)
        assert relative(actual, expected) <= 1e-5
    assert "diffusers" in peer.versions
    if static:
        with pytest.raises(ValueError, match="batch: got 2, expected 3, for which the network is compiled"):
            peer(x[:2], t[:2])
    peer.close()
    with pytest.raises(PeerUnavailable, match="is closed"):
        peer(x, t)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_compiled_network_predicts_the_same_and_takes_no_other_batch(
    step: Callable[..., peers.Step], digits: Bundle, sampler: Sampler
) -> None:
    reason = peers.available_steps(digits, SETTING)["torch.compile", "fp32"]
    if reason is not None:
        pytest.skip(reason)
    peer = step("torch.compile")
    x, t = inputs(digits.manifest.sample_shape, 1)
    assert relative(peer(x, t), sampler.backend.run({"x": x, "t": t})["prediction"]) <= 1e-5
    with pytest.raises(ValueError, match="batch: got 2, expected 1"):
        peer(*inputs(digits.manifest.sample_shape, 2))


def test_reduced_precisions_are_unavailable_where_the_hardware_has_none(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    found = peers.available_steps(digits, SETTING)
    assert "does not compute in bf16" in str(found["diffusers eager", "bf16"])
    assert "for GPUs" in str(found["torch.compile", "fp16"])
    assert "compute in float32, not in fp16" in str(found["ONNX Runtime, plain export", "fp16"])
    assert "NVIDIA GPUs only" in str(found["TensorRT, plain export", "fp32"])
    with pytest.raises(PeerUnavailable, match="measured in fp32 and fp16, not in bf16"):
        peers.open_step("ONNX Runtime, plain export", digits, replace(SETTING, precision="bf16"))


def test_bf16_where_it_can_be_had_is_near_fp32(
    digits: Bundle, sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    peer = peers.open_step("diffusers eager", digits, replace(SETTING, precision="bf16"))
    x, t = inputs(digits.manifest.sample_shape, 2)
    actual = peer(x, t)
    assert actual.dtype == np.float32
    assert 1e-4 < relative(actual, sampler.backend.run({"x": x, "t": t})["prediction"]) < 0.1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_every_peer_on_cuda_says_so(digits: Bundle) -> None:
    found = peers.available_steps(digits, replace(SETTING, device="cuda"))
    assert all(found.values())


def test_the_plain_export_is_kept_in_the_folder_and_read_from_it(
    digits: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.peers import plain

    monkeypatch.setattr(plain, "_exports", {})
    monkeypatch.setattr(plain, "_export", lambda bundle, precision: f"model, {precision}".encode())
    assert peers.plain_export(digits, tmp_path / "cache") == b"model, fp32"
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_bytes(b"kept")
    assert peers.plain_export(digits, tmp_path / "cache") == b"model, fp32"
    plain._exports.clear()
    assert peers.plain_export(digits, tmp_path / "cache") == b"kept"
    assert peers.plain_export(replace(digits, digest="sha256:other"), tmp_path / "cache") == b"model, fp32"


def test_an_unknown_peer_or_precision_is_refused_with_the_choices(digits: Bundle) -> None:
    with pytest.raises(ValueError, match="'mine', expected one of diffusers eager"):
        peers.open_step("mine", digits)
    with pytest.raises(ValueError, match="'half', expected one of fp32"):
        Setting(precision="half")


# -- whole pictures ---------------------------------------------------------------------------------------------------


def picture_error(name: str, digits: Bundle, sampler: Sampler, steps: int) -> float:
    picture = peers.open_picture(name, digits, replace(SETTING, steps=steps, batch=2))
    assert picture.ours is not None
    x_T, noise = inputs(digits.manifest.sample_shape, 2)[0], None
    if picture.own_noise is not None:
        x_T, noise = picture.own_noise(2, 7)
    samples = picture(x_T, 7)
    assert (samples.dtype, samples.shape) == (np.float32, x_T.shape)
    ours = sampler.sample(x_T=x_T, noise=noise, **picture.ours)
    assert np.abs(ours).max() > 0.5
    picture.close()
    clamped = np.clip(ours, -1, 1) if "clamps" in picture.parity else ours
    return float(np.abs(samples - clamped).max())


@pytest.mark.parametrize("steps", [10, 12])
def test_unipc_in_a_loop_draws_our_picture(steps: int, digits: Bundle, sampler: Sampler) -> None:
    assert picture_error("diffusers UniPC loop", digits, sampler, steps) <= 1e-4


@pytest.mark.parametrize("name", ["diffusers DDIM loop", "diffusers DDIMPipeline"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_draws_our_picture_where_the_steps_divide_t(
    name: str, spacing: str, digits: Bundle, sampler: Sampler
) -> None:
    spaced = changed(digits, defaults=replace(digits.manifest.defaults, spacing=spacing))
    assert picture_error(name, spaced, sampler, 20) <= 1e-4


def test_ddim_names_its_stride_where_the_steps_do_not_divide_t(digits: Bundle) -> None:
    picture = peers.open_picture("diffusers DDIM loop", digits, replace(SETTING, steps=12))
    assert picture.ours is None
    assert picture.parity == STRIDE


@pytest.mark.slow
def test_the_ddpm_pipeline_draws_our_picture_from_its_own_noise(digits: Bundle) -> None:
    short = changed(digits, schedule=NoiseSchedule.linear(100, 1e-3, 0.2))
    with Sampler.load(short, backend="torch", threads=1) as own:
        assert picture_error("diffusers DDPMPipeline", short, own, 12) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps"), [("ONNX Runtime DDIM loop", 20), ("ONNX Runtime UniPC loop", 12), ("OpenVINO UniPC loop", 12)]
)
def test_the_plain_export_in_a_loop_draws_our_picture(name: str, steps: int, digits: Bundle, sampler: Sampler) -> None:
    reason = peers.available_pictures(digits, SETTING)[name, "fp32"]
    if reason is not None:
        pytest.skip(reason)
    assert picture_error(name, digits, sampler, steps) <= 1e-4


# -- processes --------------------------------------------------------------------------------------------------------


def run(*arguments: Any) -> str:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_importing_the_peers_imports_no_runtime() -> None:
    runtimes = {"torch", "diffusers", "onnx", "onnxruntime", "openvino"}
    code = f"import sys; from benchmarks import peers; print(sorted({runtimes!r} & set(sys.modules)))"
    assert run("-c", code).strip() == "[]"


@pytest.mark.slow
def test_a_cold_process_draws_from_the_saved_folder(digits: Bundle, tmp_path: Path) -> None:
    folder = peers.save_diffusers(digits, tmp_path / "saved")
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    report = json.loads(run("benchmarks/cold_diffusers.py", folder, "--steps", 3, "--threads", 1))
    assert report["finite"]
    assert (report["steps"], report["threads"]) == (3, 1)
    assert min(report["import_s"], report["load_s"], report["first_picture_s"]) > 0
    assert 50 * 2**20 < report["peak_rss_bytes"] < 2**31
