"""Checkpoints of lucidrains' denoising-diffusion-pytorch give its own network and its own sampling steps."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from ddpm_deploy.errors import ExportError
from ddpm_deploy.export.sources import Settings, open_source
from ddpm_deploy.solvers import make_plan

torch = pytest.importorskip("torch")
ema_pytorch = pytest.importorskip("ema_pytorch", reason="writes the checkpoints")
lucidrains_package = pytest.importorskip("lucidrains_package")
try:
    lucidrains = lucidrains_package.load()
except ImportError:
    pytest.skip("denoising-diffusion-pytorch is not installed", allow_module_level=True)

T = 20
SHAPE = (3, 8, 8)
SIZE = Settings(sample_shape=SHAPE)
OBJECTIVES = {"pred_noise": "eps", "pred_x0": "x0", "pred_v": "v"}

UNETS: dict[str, dict[str, Any]] = {
    "plain": {"dim": 8, "dim_mults": (1, 2)},
    "three levels": {"dim": 8, "dim_mults": (1, 2, 4), "attn_heads": 2, "attn_dim_head": 8},
    "full attention": {"dim": 8, "dim_mults": (1, 2), "full_attn": (True, False), "attn_dim_head": (4, 16)},
    "another first width": {"dim": 8, "init_dim": 12, "dim_mults": (2, 3), "attn_heads": (1, 2)},
    "one channel": {"dim": 8, "dim_mults": (1, 2), "channels": 1, "dropout": 0.2},
    "theta": {"dim": 8, "dim_mults": (1, 2), "sinusoidal_pos_emb_theta": 500},
    "learned times": {"dim": 8, "dim_mults": (1, 2), "learned_sinusoidal_cond": True, "learned_sinusoidal_dim": 6},
}


def make_unet(kind: str = "Unet", **options: Any) -> Any:
    torch.manual_seed(0)
    unet = getattr(lucidrains, kind)(**options).eval()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return unet


def make_diffusion(unet: Any = None, kind: str = "GaussianDiffusion", **options: Any) -> Any:
    unet = unet or make_unet(**UNETS["plain"])
    return getattr(lucidrains, kind)(unet, image_size=SHAPE[-1], timesteps=T, **options).eval()


def save(value: Any, path: Path) -> str:
    torch.save(value, path)
    return str(path)


@torch.no_grad()
def relative_error(source: Any, unet: Any, batch: int = 3) -> float:
    x, t = torch.randn(batch, *source.sample_shape), torch.linspace(T - 1, 0.5, batch)
    expected = unet(x, t)
    return float((source.network(x, t) - expected).norm() / expected.norm())


# -- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNETS)
def test_the_network_is_rebuilt_from_its_weights_alone(tmp_path: Path, name: str) -> None:
    unet = make_unet(**UNETS[name])
    said: dict[str, Any] = {"schedule": {"kind": "linear", "T": T}, "prediction": "eps"}
    if name == "theta":  # the only argument here that no shape tells
        said["factory_options"] = {"sinusoidal_pos_emb_theta": 500}
    shape = (unet.channels, 8, 8)
    source = open_source(save(unet.state_dict(), tmp_path / "unet.pt"), Settings(sample_shape=shape, **said))
    assert relative_error(source, unet) <= 1e-5
    assert source.provenance["weights"] == "as trained"


def test_a_one_dimensional_network_is_rebuilt(tmp_path: Path) -> None:
    unet = make_unet("Unet1D", dim=8, dim_mults=(1, 2), channels=5, attn_heads=2)
    diffusion = lucidrains.GaussianDiffusion1D(unet, seq_length=16, timesteps=T, objective="pred_noise")
    path = save(diffusion.state_dict(), tmp_path / "signals.pt")
    source = open_source(path, Settings(sample_shape=(5, 16)))
    assert relative_error(source, unet) <= 1e-5
    assert source.prediction == "eps"


def test_a_self_conditioned_network_is_evaluated_without(tmp_path: Path) -> None:
    unet = make_unet(dim=8, dim_mults=(1, 2), self_condition=True)
    source = open_source(save(make_diffusion(unet).state_dict(), tmp_path / "m.pt"), SIZE)
    assert relative_error(source, unet) <= 1e-5
    assert source.provenance["self_condition"] == "none is given"


def test_the_network_exports_with_a_free_batch(tmp_path: Path) -> None:
    """Its own code leaves much to einops, which not every tracer follows."""
    ort = pytest.importorskip("onnxruntime")
    from ddpm_deploy.export.graph import Denoiser, trace

    source = open_source(save(make_diffusion().state_dict(), tmp_path / "m.pt"), SIZE)
    x, t = np.random.default_rng(0).standard_normal((5, *SHAPE)).astype(np.float32), np.linspace(19, 0.5, 5)
    feeds = {"x": x, "t": t.astype(np.float32)}
    graph = trace(Denoiser(source.network, ()).eval(), {name: array[:2] for name, array in feeds.items()}, 18)
    (got,) = ort.InferenceSession(graph.SerializeToString()).run(None, feeds)
    with torch.no_grad():
        expected = source.network(*map(torch.from_numpy, feeds.values())).numpy()
    assert np.linalg.norm(got - expected) <= 1e-5 * np.linalg.norm(expected)


# -- the file ---------------------------------------------------------------------------------------------------------


def trainer_file(diffusion: Any, averaged: Any) -> dict[str, Any]:
    """What `Trainer.save` writes."""
    optimiser = torch.optim.Adam(diffusion.parameters(), lr=1e-4)
    data = {"step": 700, "model": diffusion.state_dict(), "opt": optimiser.state_dict(), "ema": averaged.state_dict()}
    return data | {"scaler": None, "version": "2.3.4"}


def test_the_averaged_weights_of_a_trainers_file_are_taken(tmp_path: Path) -> None:
    diffusion = make_diffusion()
    averaged = ema_pytorch.EMA(diffusion, beta=0.5)
    averaged.update()
    with torch.no_grad():
        for parameter in diffusion.parameters():
            parameter.add_(1.0)
    source = open_source(save(trainer_file(diffusion, averaged), tmp_path / "model-7.pt"), SIZE)
    assert relative_error(source, averaged.ema_model.model) <= 1e-5
    assert relative_error(source, diffusion.model) > 0.1
    assert (source.name, source.provenance["steps"], source.provenance["weights"]) == ("model-7", 700, "averaged")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_bare_state_dict_is_taken_from_both_formats(tmp_path: Path, suffix: str) -> None:
    diffusion, path = make_diffusion(), tmp_path / f"model{suffix}"
    (save if suffix == ".pt" else save_file)(diffusion.state_dict(), path)
    source = open_source(str(path), SIZE)
    assert relative_error(source, diffusion.model) <= 1e-5


# -- schedule and objective -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capped", [False, True])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_schedule_and_objective_are_read_from_the_tables(
    tmp_path: Path, objective: str, schedule: str, capped: bool
) -> None:
    diffusion = make_diffusion(objective=objective, beta_schedule=schedule, min_snr_loss_weight=capped)
    source = open_source(save(diffusion.state_dict(), tmp_path / "m.pt"), SIZE)
    assert source.prediction == OBJECTIVES[objective]
    np.testing.assert_allclose(source.schedule.alpha, diffusion.sqrt_alphas_cumprod.numpy(), rtol=1e-6)
    np.testing.assert_allclose(source.schedule.sigma, diffusion.sqrt_one_minus_alphas_cumprod.numpy(), rtol=1e-6)
    np.testing.assert_allclose(source.schedule.betas, diffusion.betas.numpy(), rtol=1e-5)
    assert (source.schedule.alpha[-1] == 0) == (schedule == "linear")  # so short, theirs ends in pure noise
    assert (source.clip, source.variance) == ((-1.0, 1.0), "small")


@torch.no_grad()
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_step_of_ddpm_and_of_ddim_is_theirs(tmp_path: Path, objective: str) -> None:
    diffusion = make_diffusion(objective=objective)
    source = open_source(save(diffusion.state_dict(), tmp_path / "m.pt"), SIZE)
    x = torch.randn(2, *SHAPE)
    time, before = 11, 6
    now = torch.full((2,), time)
    m = source.network(x, now.float())
    theirs = diffusion.model_predictions(x, now, clip_x_start=True, rederive_pred_noise=True)

    def plan(solver: str, timesteps: list[int]) -> Any:
        return make_plan(solver, source.schedule, timesteps=timesteps, prediction=source.prediction, clip=source.clip)

    state, x0 = plan("ddim", [time, before]).step(0, [x.numpy()], m.numpy())
    np.testing.assert_allclose(x0, theirs.pred_x_start, atol=1e-5)
    alpha, sigma = diffusion.sqrt_alphas_cumprod[before], diffusion.sqrt_one_minus_alphas_cumprod[before]
    np.testing.assert_allclose(state[0], alpha * theirs.pred_x_start + sigma * theirs.pred_noise, atol=1e-5)

    mean, _, log_variance, _ = diffusion.p_mean_variance(x=x, t=now, clip_denoised=True)
    z = torch.randn_like(x)
    state, _ = plan("ddpm", [time, time - 1]).step(0, [x.numpy()], m.numpy(), z.numpy())
    np.testing.assert_allclose(state[0], mean + (0.5 * log_variance).exp() * z, atol=1e-5)


@torch.no_grad()
def test_a_learned_variance_steps_as_theirs(tmp_path: Path) -> None:
    unet = make_unet(dim=8, dim_mults=(1, 2), learned_variance=True)
    diffusion = make_diffusion(unet, "LearnedGaussianDiffusion")
    source = open_source(save(diffusion.state_dict(), tmp_path / "m.pt"), SIZE)
    assert (source.variance, source.prediction) == ("learned", "eps")
    x, z, now = torch.randn(2, *SHAPE), torch.randn(2, *SHAPE), torch.full((2,), 11)
    mean, _, log_variance, _ = diffusion.p_mean_variance(x=x, t=now, clip_denoised=True)
    plan = make_plan("ddpm", source.schedule, timesteps=[11, 10], variance="learned", clip=source.clip)
    state, _ = plan.step(0, [x.numpy()], source.network(x, now.float()).numpy(), z.numpy())
    np.testing.assert_allclose(state[0], mean + (0.5 * log_variance).exp() * z, atol=1e-5)


# -- what is missing, foreign or hostile ------------------------------------------------------------------------------


def test_what_no_file_says_is_asked_for(tmp_path: Path) -> None:
    diffusion = make_diffusion()
    path = save(diffusion.state_dict(), tmp_path / "m.pt")
    with pytest.raises(ExportError, match="does not say the size of its samples; give sample_shape"):
        open_source(path)
    bare = save(diffusion.model.state_dict(), tmp_path / "bare.pt")
    with pytest.raises(ExportError, match="give schedule and prediction"):
        open_source(bare, SIZE)
    state = diffusion.state_dict()
    del state["loss_weight"]
    older = save(state, tmp_path / "older.pt")
    with pytest.raises(ExportError, match=r"what its network predicts; give prediction"):
        open_source(older, SIZE)
    assert open_source(older, Settings(sample_shape=SHAPE, prediction="v")).prediction == "v"


def test_strange_loss_weights_are_no_guess(tmp_path: Path) -> None:
    state = make_diffusion().state_dict()
    state["loss_weight"] = torch.rand(T)
    with pytest.raises(ExportError, match="loss_weight: fits no known objective; give prediction"):
        open_source(save(state, tmp_path / "m.pt"), SIZE)


def test_what_cannot_be_mapped_is_listed_key_by_key(tmp_path: Path) -> None:
    state = make_diffusion().state_dict()
    state["model.extra.weight"] = torch.zeros(3)
    state["model.mid_block1.block1.proj.bias"] = torch.zeros(7)
    del state["model.mid_block2.mlp.1.bias"]
    with pytest.raises(ExportError) as caught:
        open_source(save(state, tmp_path / "m.pt"), SIZE)
    lines = str(caught.value).splitlines()
    assert [line.strip() for line in lines[1:]] == [
        "extra.weight: got (3,), expected nothing",
        "mid_block1.block1.proj.bias: got (7,), expected (16,)",
        "mid_block2.mlp.1.bias: got nothing, expected (32,)",
    ]


def test_tensors_outside_the_network_are_named(tmp_path: Path) -> None:
    state = make_diffusion().state_dict() | {"log_snr.net.weight": torch.zeros(2)}
    with pytest.raises(ExportError, match=r"cannot map these tensors: log_snr\.net\.weight"):
        open_source(save(state, tmp_path / "m.pt"), SIZE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"final_conv.weight": torch.zeros(8, 8, 1, 1)}, "8 channels for 3"),  # the weighted objective's
        ({"downs.0.2.mem_kv": None}, "mem_kv"),  # before there was a memory of keys and values
        ({"time_mlp.3.weight": torch.zeros(30, 30)}, "multiples of dim"),
        ({"downs.1.3.weight": torch.zeros(10**6, 1, 1, 1)}, "cannot map these tensors"),
        ({"init_conv.weight": torch.zeros(3)}, "cannot tell"),
        ({"init_conv.weight": None}, "holds no U-Net of lucidrains"),
    ],
)
def test_another_network_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    state = {name.removeprefix("model."): tensor for name, tensor in make_diffusion().state_dict().items()}
    state = {name: tensor for name, tensor in (state | changes).items() if tensor is not None}
    with pytest.raises(ExportError, match=re.escape(message)):
        open_source(save(state, tmp_path / "m.pt"), SIZE)


def test_options_that_the_weights_tell_are_refused(tmp_path: Path) -> None:
    path = save(make_diffusion().state_dict(), tmp_path / "m.pt")
    with pytest.raises(ExportError, match="dim: the weights tell it"):
        open_source(path, Settings(sample_shape=SHAPE, factory_options={"dim": 8}))
    with pytest.raises(ExportError, match="weights: of no use to a lucidrains checkpoint"):
        open_source(path, Settings(sample_shape=SHAPE, weights="other.safetensors"))


def test_nan_weights_are_refused_by_name(tmp_path: Path) -> None:
    state = make_diffusion().state_dict()
    state["model.mid_attn.mem_kv"][0] = float("nan")
    with pytest.raises(ExportError, match=r"mid_attn\.mem_kv: holds NaN"):
        open_source(save(state, tmp_path / "m.pt"), SIZE)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_the_pickle_of_a_stranger_is_not_run(tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "m.pt"

    class Attack:
        def __reduce__(self) -> Any:
            return (Path.touch, (canary,))

    state = make_diffusion().state_dict()
    for value in ({"model": state, "ema": None, "opt": Attack()}, state | {"x": Attack()}, Attack()):
        torch.save(value, path)
        with pytest.raises(ExportError, match="may hold code"):
            open_source(str(path), SIZE)
    path.write_bytes(pickle.dumps(Attack()))
    with pytest.raises(ExportError, match=r"m\.pt"):
        open_source(str(path), SIZE)
    assert not canary.exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9, 0.999])
def test_a_truncated_file_is_named(tmp_path: Path, share: float) -> None:
    path = tmp_path / "m.pt"
    save(make_diffusion().state_dict(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ExportError, match=r"m\.pt"):
        open_source(str(path), SIZE)


WITHOUT = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "denoising_diffusion_pytorch":
            raise ImportError("No module named 'denoising_diffusion_pytorch'")
sys.meta_path.insert(0, Blocked())
from ddpm_deploy.errors import ExportError
from ddpm_deploy.export.sources import Settings, open_source
try:
    open_source(sys.argv[1], Settings(sample_shape=(3, 8, 8)))
except ExportError as error:
    print(error)
"""


def test_without_the_package_the_error_names_the_command(tmp_path: Path) -> None:
    path = save(make_diffusion().state_dict(), tmp_path / "m.pt")
    command = [sys.executable, "-c", WITHOUT, path]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert "pip install denoising-diffusion-pytorch" in done.stdout
