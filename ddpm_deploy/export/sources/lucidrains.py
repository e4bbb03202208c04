"""Checkpoints of lucidrains' denoising-diffusion-pytorch, known by the names of their tensors."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddpm_deploy.errors import ExportError
from ddpm_deploy.export.sources.base import PICTURES, Settings, Source, default_solver
from ddpm_deploy.export.sources.files import as_state, read_checkpoint, read_safetensors, require_finite, sha256_of_file
from ddpm_deploy.export.sources.lucidrains_unet import infer_arguments, list_differences
from ddpm_deploy.schedule import Float, NoiseSchedule

PACKAGE = "denoising_diffusion_pytorch"
INSTALL = "pip install denoising-diffusion-pytorch"
USES = (
    "sample_shape",
    "schedule",
    "prediction",
    "variance",
    "clip",
    "output",
    "factory_options",
)
TABLES = frozenset(
    {
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
        "loss_weight",
        "p2_loss_weight",
    }
)
CLIP = (-1.0, 1.0)  # what its samplers clamp to, normalised or not


class LucidrainsUNet(nn.Module):
    """lucidrains' U-Net under our contract.

    One that conditions on its own last image gets none, as in half of its training.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x: (B, C, H, W) or (B, C, L). t: (B,) float."""
        out: Tensor = self.network(x, t)
        return out


def read_lucidrains(path: Path, settings: Settings) -> Source:
    """A file of its `Trainer` (the averaged weights in it), or the state dict of a GaussianDiffusion or a Unet.

    The shape of the samples is not in the file, so `settings.sample_shape` is needed.
    Raises ExportError that lists the tensors that cannot be mapped.
    """
    settings.require_only(USES, "a lucidrains checkpoint")
    state, provenance = _read(path)
    weights, tables = _split(state, path)
    arguments = infer_arguments(weights, settings.factory_options, path)
    network = _rebuild(weights, arguments, path)
    channels, learned = arguments["channels"], arguments["learned_variance"]
    shape = _sample_shape(settings, channels, weights, len(arguments["dim_mults"]), path)
    schedule = settings.given_schedule or _schedule(tables, path)
    if arguments["self_condition"]:
        provenance["self_condition"] = "none is given"
    return Source(
        sample_shape=shape,
        schedule=schedule,
        prediction=settings.prediction or _prediction(tables, learned, path),
        variance=_variance(settings, learned),
        clip=settings.clip_or(CLIP),
        output=settings.output_or(PICTURES),
        conditions=(),
        defaults=default_solver(schedule),
        name=path.stem,
        provenance={"source": "lucidrains", **provenance, "weights_sha256": sha256_of_file(path)},
        network=LucidrainsUNet(network).eval(),
    )


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict inside the file, and what the file says about itself."""
    if path.suffix == ".safetensors":
        return _averaged(read_safetensors(path))
    value = read_checkpoint(path)
    if isinstance(value, Mapping) and "model" in value and not isinstance(value["model"], Tensor):
        said = {"steps": value.get("step"), "package": value.get("version")}
        kept = {name: item for name, item in said.items() if isinstance(item, int | str)}
        part = "ema" if isinstance(value.get("ema"), Mapping) else "model"
        state, note = _averaged(as_state(value[part], f"{path}: {part}"))
        return state, {**kept, **note}
    return _averaged(as_state(value, f"{path}"))


def _averaged(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Only the averaged half of what `EMA` holds; another state dict as it is."""
    prefix = "ema_model."
    inner = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    return (inner, {"weights": "averaged"}) if inner else (state, {"weights": "as trained"})


def _split(state: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The U-Net's tensors, without their prefix, and the tables of the diffusion."""
    tables = {name: tensor for name, tensor in state.items() if name in TABLES}
    rest = {name: tensor for name, tensor in state.items() if name not in TABLES}
    prefix = "model." if any(name.startswith("model.") for name in rest) else ""
    weights = {name.removeprefix(prefix): tensor for name, tensor in rest.items() if name.startswith(prefix)}
    if "init_conv.weight" not in weights or "final_conv.weight" not in weights:
        raise ExportError(f"{path}: holds no U-Net of lucidrains (init_conv, final_conv), but {_some(state)}")
    foreign = [name for name in rest if not name.startswith(prefix)]
    if foreign:
        raise ExportError(f"{path}: cannot map these tensors: {_some(foreign)}")
    return require_finite(weights, path), tables


def _rebuild(weights: dict[str, Tensor], arguments: dict[str, Any], path: Path) -> nn.Module:
    flat = weights["init_conv.weight"].ndim == 3
    try:
        package = importlib.import_module(PACKAGE)
    except Exception as error:  # torchvision beside another build of torch raises a RuntimeError
        raise ExportError(f"{path}: {PACKAGE} cannot be imported: {error}; {INSTALL}") from None
    kind = package.Unet1D if flat else package.Unet
    if flat:
        arguments = {name: value for name, value in arguments.items() if name != "full_attn"}
    try:
        with torch.device("meta"):  # no memory is taken before the shapes are known to fit
            differences = list_differences(kind(**arguments), weights)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise ExportError(f"{path}: the installed {PACKAGE} cannot build Unet({arguments}): {error}") from None
    if differences:
        lines = "\n  ".join(differences)
        raise ExportError(f"{path}: cannot map these tensors to Unet({arguments}):\n  {lines}")
    network: nn.Module = kind(**arguments)
    network.load_state_dict(weights)
    return network


def _sample_shape(
    settings: Settings, channels: int, weights: Mapping[str, Tensor], levels: int, path: Path
) -> tuple[int, ...]:
    sides = weights["init_conv.weight"].ndim - 2
    multiple = 2 ** (levels - 1)
    if settings.sample_shape is None:
        example = ", ".join(map(str, (channels, *(32,) * sides)))
        raise ExportError(f"{path}: does not say the size of its samples; give sample_shape, such as {example}")
    shape = settings.shape_or((channels, *(multiple,) * sides))
    if any(side % multiple for side in shape[1:]):
        raise ExportError(f"sample_shape: got {shape}, expected sides that are multiples of {multiple}")
    return shape


def _variance(settings: Settings, learned: bool) -> str:
    if settings.variance is not None and (settings.variance == "learned") != learned:
        raise ExportError(f"variance: got {settings.variance!r}, but the network has learned_variance={learned}")
    return settings.variance or ("learned" if learned else "small")


def _table(tables: Mapping[str, Tensor], name: str, path: Path) -> Float:
    if name not in tables or tables[name].ndim != 1:
        raise ExportError(f"{path}: {name}: there is no such table of the diffusion; give schedule and prediction")
    return tables[name].double().numpy()


def _schedule(tables: Mapping[str, Tensor], path: Path) -> NoiseSchedule:
    """From sigma/alpha, which the file holds to full float32 precision at both ends."""
    ratio = _table(tables, "sqrt_recipm1_alphas_cumprod", path)
    scale = np.hypot(1, ratio)
    sigma = np.divide(ratio, scale, out=np.ones_like(ratio), where=np.isfinite(ratio) | np.isnan(ratio))
    try:
        return NoiseSchedule.from_alpha_sigma(1 / scale, sigma)
    except ValueError as error:
        raise ExportError(f"{path}: sqrt_recipm1_alphas_cumprod: is no schedule: {error}") from None


def _prediction(tables: Mapping[str, Tensor], learned: bool, path: Path) -> str:
    """Which objective the weights of the loss belong to; with a learned variance it is always the noise."""
    if learned:
        return "eps"
    if "loss_weight" not in tables:
        raise ExportError(f"{path}: does not say what its network predicts; give prediction (eps, v or x0)")
    ratio, weight = _table(tables, "sqrt_recipm1_alphas_cumprod", path), _table(tables, "loss_weight", path)
    if weight.shape != ratio.shape:
        raise ExportError(f"{path}: loss_weight: got {weight.size} numbers, expected {ratio.size}")
    known = np.isfinite(ratio) & (ratio > 0)  # pure noise, where a schedule ends in it, tells nothing
    snr, weight = ratio[known] ** -2, weight[known]
    kept = {"eps": weight * snr, "x0": weight, "v": weight * (snr + 1)}  # the SNR, capped where min-SNR was used
    found = [
        kind
        for kind, capped in kept.items()
        if capped.size and np.allclose(capped, np.minimum(snr, capped.max()), rtol=1e-3)
    ]
    if len(found) != 1:
        raise ExportError(f"{path}: loss_weight: fits {found or 'no known objective'}; give prediction (eps, v or x0)")
    return found[0]


def _some(names: Any, most: int = 8) -> str:
    listed = sorted(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
