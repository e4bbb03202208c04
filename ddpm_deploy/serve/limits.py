"""What one request of the HTTP service may ask for; everything is checked before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from ddpm_deploy.serve.request import is_whole

TIMES_TRAINED = 4


@dataclass(frozen=True)
class Limits:
    """What `python -m ddpm_deploy.serve` has as defaults.

    max_n: pictures. max_steps: network evaluations of one picture. max_pixels: of one picture, where its size is free;
    None is TIMES_TRAINED those of the trained size, as what the runtime needs grows with them.
    max_work: pixels x evaluations of all pictures of a request.
    max_body_bytes: of the request as it is sent.
    deadline_s: when a request fails that is not finished, and the most that it may ask for itself.
    body_s: how long its body may take to arrive.
    """

    max_n: int = 16
    max_steps: int = 1000
    max_pixels: int | None = None
    max_work: int = 2**30
    max_body_bytes: int = 65536
    deadline_s: float = 60.0
    body_s: float = 10.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, whole = getattr(self, field.name), field.name.startswith("max_")
            if value is None and field.name == "max_pixels":
                continue
            if (whole and not is_whole(value)) or not math.isfinite(value) or value <= 0:
                kind = "whole number" if whole else "number of seconds"
                raise ValueError(f"{field.name}: got {value!r}, expected a {kind} above 0")

    def pixels(self, shape: Sequence[int]) -> int:
        """The most of one picture, where the trained size is that of samples (C, H, W)."""
        return self.max_pixels or TIMES_TRAINED * math.prod(shape[1:])
