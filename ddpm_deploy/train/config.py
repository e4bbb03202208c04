"""The settings of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ddpm_deploy import strict

OPTIMIZERS = ("adam", "adamw")
LR_SCHEDULES = ("constant", "cosine")
MIXED_PRECISIONS = ("no", "bf16", "fp16")
MAX_BATCH = 2**16
MAX_WORKERS = 256


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    batch_size: over all processes together. warmup_steps: of a linear rise of the learning rate. lr_schedule: what
    follows, constant or half a cosine down to 0 at the last step. clip_norm: bound of the gradient's norm, or None.
    min_snr_gamma: None for L_simple, or the bound of min-SNR weighting. flip: mirror half of the pictures.
    vlb_weight: of the variational bound in the loss of a learned variance.
    condition_dropout: share of the samples whose conditions are dropped, for those conditions that have a null.
    keep: checkpoints kept. The *_every settings count steps. sample_every: 0 draws no samples. workers: processes
    that read data. tensorboard: write event files beside metrics.csv.
    """

    steps: int = 10_000
    batch_size: int = 128
    lr: float = 2e-4
    optimizer: str = "adam"
    weight_decay: float = 0.0
    warmup_steps: int = 0
    lr_schedule: str = "constant"
    clip_norm: float | None = 1.0
    ema_decay: float = 0.999
    min_snr_gamma: float | None = None
    vlb_weight: float = 1e-3
    condition_dropout: float = 0.1
    mixed_precision: str = "no"
    flip: bool = False
    seed: int = 0
    checkpoint_every: int = 1000
    keep: int = 2
    log_every: int = 50
    sample_every: int = 1000
    sample_count: int = 64
    sample_steps: int = 20
    workers: int = 0
    tensorboard: bool = True

    def __post_init__(self) -> None:
        strict.require_counts(self, "steps", "batch_size", "checkpoint_every", "keep", "log_every", "sample_count")
        strict.require_counts(self, "sample_steps")
        for name, most in {"batch_size": MAX_BATCH, "sample_count": MAX_BATCH, "workers": MAX_WORKERS}.items():
            if getattr(self, name) > most:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at most {most}")
        for name in ("weight_decay", "warmup_steps", "sample_every", "workers", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 0 or more")
        for name in ("lr", "clip_norm", "vlb_weight"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}: got {value}, expected a number above 0")
        if not 0 <= self.condition_dropout <= 1:
            raise ValueError(f"condition_dropout: got {self.condition_dropout}, expected a number in [0, 1]")
        choices = {"optimizer": OPTIMIZERS, "lr_schedule": LR_SCHEDULES, "mixed_precision": MIXED_PRECISIONS}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected one of {', '.join(allowed)}")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainConfig:
        """Read what `to_dict` wrote; unknown keys are refused."""
        return strict.from_dict(cls, data)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return strict.to_dict(self)
