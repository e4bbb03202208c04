"""Complete settings for known data sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ddpm_deploy.bundle import Defaults
from ddpm_deploy.model import UNetConfig
from ddpm_deploy.schedule import NoiseSchedule
from ddpm_deploy.train.config import TrainConfig

SCHEDULES: dict[str, Callable[[int], NoiseSchedule]] = {
    "linear": NoiseSchedule.linear,
    "scaled-linear": NoiseSchedule.scaled_linear,
    "cosine": NoiseSchedule.cosine,
    "sigmoid": NoiseSchedule.sigmoid,
    "flow": NoiseSchedule.flow_matching,
}


@dataclass(frozen=True)
class Preset:
    """Everything that a command line may leave out.

    data: None where the user has to name it. labels: whether the preset's own data comes with them.
    """

    summary: str
    data: str | None
    size: int
    network: UNetConfig
    config: TrainConfig
    defaults: Defaults
    variance: str = "small"
    schedule: str = "linear"
    T: int = 1000
    prediction: str = "eps"
    labels: bool = False


PRESETS: dict[str, Preset] = {
    "digits": Preset(
        summary="8x8 handwritten digits, a few minutes on two CPU cores",
        data="digits",
        size=8,
        network=UNetConfig.digits(),
        config=TrainConfig(
            steps=1400,
            batch_size=128,
            lr=2e-3,
            optimizer="adamw",
            warmup_steps=100,
            lr_schedule="cosine",
            ema_decay=0.995,
            min_snr_gamma=5.0,
            condition_dropout=0.25,
            checkpoint_every=350,
            sample_every=350,
        ),
        defaults=Defaults("unipc", 12, "trailing"),
        labels=True,
    ),
    "shapes": Preset(
        summary="32x32 coloured shapes from captions, about half an hour on one CPU core",
        data="shapes",
        size=32,
        network=UNetConfig.shapes(),
        config=TrainConfig(
            steps=4000,
            batch_size=64,
            lr=1.5e-3,
            optimizer="adamw",
            warmup_steps=200,
            lr_schedule="cosine",
            mixed_precision="bf16",
            checkpoint_every=500,
            sample_every=500,
            sample_count=36,
        ),
        defaults=Defaults("unipc", 12, "trailing"),
        prediction="v",
    ),
    "cifar10": Preset(
        summary="CIFAR-10 as in the DDPM paper, for a GPU",
        data=None,
        size=32,
        network=UNetConfig.cifar10(),
        config=TrainConfig(
            steps=800_000,
            batch_size=128,
            lr=2e-4,
            warmup_steps=5000,
            ema_decay=0.9999,
            flip=True,
            checkpoint_every=10_000,
            log_every=100,
            sample_every=10_000,
            workers=2,
        ),
        defaults=Defaults("unipc", 20, "trailing"),
        variance="large",
    ),
    "improved": Preset(
        summary="CIFAR-10 as in improved DDPM: learned variance, cosine schedule, for a GPU",
        data=None,
        size=32,
        network=UNetConfig.cifar10_improved(),
        config=TrainConfig(
            steps=500_000,
            batch_size=128,
            lr=1e-4,
            ema_decay=0.9999,
            flip=True,
            checkpoint_every=10_000,
            log_every=100,
            sample_every=10_000,
            workers=2,
        ),
        defaults=Defaults("unipc", 20, "trailing"),
        variance="learned",
        schedule="cosine",
        T=4000,
    ),
    "pictures256": Preset(
        summary="256x256 pictures as in the DDPM paper, for GPUs",
        data=None,
        size=256,
        network=UNetConfig.pictures256(),
        config=TrainConfig(
            steps=500_000,
            batch_size=64,
            lr=2e-5,
            warmup_steps=5000,
            ema_decay=0.9999,
            flip=True,
            checkpoint_every=5000,
            log_every=100,
            sample_every=5000,
            sample_count=16,
            workers=8,
        ),
        defaults=Defaults("unipc", 20, "trailing"),
    ),
    "tiny": Preset(
        summary="the digits with a toy network in seconds, to try things out",
        data="digits",
        size=8,
        network=UNetConfig(
            in_channels=1, block_out_channels=(8, 16), layers_per_block=1, up_attention=(True, False), norm_groups=4
        ),
        config=TrainConfig(
            steps=100, batch_size=16, lr=2e-3, checkpoint_every=50, log_every=10, sample_every=0, tensorboard=False
        ),
        defaults=Defaults("unipc", 8, "trailing"),
    ),
}
