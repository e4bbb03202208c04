"""How to export; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

OPSET = 18
MAX_RELATIVE_ERROR = 1e-5  # see parity.budget


@dataclass(frozen=True)
class Options:
    """Settings of an export.

    opset: 18 is the fastest on ONNX Runtime's CPU provider. max_relative_error: budget of the relative L2 error of a
    prediction. parity_timesteps: how many timesteps parity is checked at, None for all T. progress: show a bar on a
    terminal.
    """

    opset: int = OPSET
    max_relative_error: float = MAX_RELATIVE_ERROR
    parity_timesteps: int | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        if not self.max_relative_error > 0:
            raise ValueError(f"max_relative_error: got {self.max_relative_error}, expected a positive number")
        if self.parity_timesteps is not None and self.parity_timesteps < 1:
            raise ValueError(f"parity_timesteps: got {self.parity_timesteps}, expected at least 1, or None for all")
