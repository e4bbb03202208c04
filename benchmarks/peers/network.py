"""From a bundle to diffusers: its own `UNet2DModel` with the same weights, its schedulers, and the folder it saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.peers.base import PeerUnavailable, require_packages
from ddpm_deploy.bundle import Bundle
from ddpm_deploy.errors import BundleError

PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
VARIANCES = {"small": "fixed_small", "large": "fixed_large", "learned": "learned_range"}
SPACINGS = ("leading", "trailing")


def network_options(bundle: Bundle) -> dict[str, Any]:
    """The options of the `UNet2DModel` that is the bundle's network; PeerUnavailable says why there is none."""
    require_packages(["torch", "diffusers", "safetensors"])
    from ddpm_deploy.model.diffusers_weights import write_config
    from ddpm_deploy.model.unet_config import UNetConfig

    spec = bundle.manifest.network
    if spec is None:
        raise PeerUnavailable("the bundle does not say how its network is built, so diffusers' cannot be built from it")
    if spec["kind"] != "unet":
        raise PeerUnavailable(f"the network is of kind {spec['kind']!r}, which diffusers' UNet2DModel is not")
    try:
        return write_config(UNetConfig.from_dict(spec["config"]), bundle.manifest.sample_shape[1:])
    except ValueError as error:
        raise PeerUnavailable(f"diffusers' UNet2DModel is not this network: {error}") from error


def diffusers_network(bundle: Bundle) -> Any:
    """diffusers' `UNet2DModel` with the bundle's float32 weights, in eval mode; PeerUnavailable where it is no such."""
    options = network_options(bundle)
    from diffusers import UNet2DModel
    from safetensors.torch import load

    from ddpm_deploy.model.diffusers_weights import write_weights

    try:
        own = load(bundle.open_bytes(bundle.file("denoiser", "fp32", "torch")))
    except BundleError as error:
        raise PeerUnavailable(f"no weights for diffusers' UNet2DModel: {error}") from error
    network = UNet2DModel(**options).eval().requires_grad_(False)
    network.load_state_dict(write_weights(own, network.state_dict()))
    return network


def require_unconditional(bundle: Bundle) -> None:
    """PeerUnavailable for a network that takes more than x and t: diffusers' unconditional pipelines pass no more."""
    network_options(bundle)
    names = ", ".join(condition.name for condition in bundle.manifest.conditions)
    if names:
        raise PeerUnavailable(f"the network takes {names}, which diffusers' unconditional pipelines do not pass on")


def scheduler_options(bundle: Bundle) -> dict[str, Any]:
    """What all of diffusers' schedulers are told of the model; PeerUnavailable for what they cannot be told."""
    manifest = bundle.manifest
    if manifest.prediction not in PREDICTIONS:
        raise PeerUnavailable(f"diffusers' DDPM schedulers know no prediction {manifest.prediction!r}")
    if not manifest.schedule.is_variance_preserving or manifest.schedule.alpha[-1] == 0:
        raise PeerUnavailable(
            "diffusers' schedulers take betas below 1, and the schedule has none or ends in pure noise"
        )
    spacing = manifest.defaults.spacing
    return {
        "num_train_timesteps": manifest.schedule.T,
        "trained_betas": manifest.schedule.betas.tolist(),
        "prediction_type": PREDICTIONS[manifest.prediction],
        "timestep_spacing": spacing if spacing in SPACINGS else "trailing",
    }


def ddpm_scheduler(bundle: Bundle) -> Any:
    """`DDPMScheduler` with the model's variance and clip."""
    options = scheduler_options(bundle) | _clip(bundle)
    from diffusers import DDPMScheduler

    return DDPMScheduler(**options, variance_type=VARIANCES[bundle.manifest.variance])


def ddim_scheduler(bundle: Bundle) -> Any:
    """`DDIMScheduler` with the model's clip; its steps are to be told `use_clipped_model_output=True`."""
    _require_fixed_variance(bundle, "DDIM")
    options = scheduler_options(bundle) | _clip(bundle)
    from diffusers import DDIMScheduler

    return DDIMScheduler(**options)


def unipc_scheduler(bundle: Bundle, order: int = 3) -> Any:
    """`UniPCMultistepScheduler`, which does not clip; order 3 is what diffusers advises for unconditional sampling."""
    _require_fixed_variance(bundle, "UniPC")
    options = scheduler_options(bundle)
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(**options, solver_order=order)


def _require_fixed_variance(bundle: Bundle, solver: str) -> None:
    if bundle.manifest.variance == "learned":
        raise PeerUnavailable(f"diffusers' {solver} does not take a network that predicts its variance as well")


def _clip(bundle: Bundle) -> dict[str, Any]:
    clip = bundle.manifest.clip
    if clip is None:
        return {"clip_sample": False}
    if clip[0] != -clip[1]:
        raise PeerUnavailable(f"diffusers clips to a range around 0 only, and the model to {clip[0]:g} ... {clip[1]:g}")
    return {"clip_sample": True, "clip_sample_range": clip[1]}


def save_diffusers(bundle: Bundle, folder: Path) -> Path:
    """Write the folder that `DDPMPipeline.from_pretrained` reads: network (safetensors) and scheduler; returns it."""
    require_unconditional(bundle)
    scheduler = ddpm_scheduler(bundle)
    from diffusers import DDPMPipeline

    DDPMPipeline(diffusers_network(bundle), scheduler).save_pretrained(folder)
    return folder
