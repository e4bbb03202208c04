"""Which of a loop's buffers each tensor of a `step` graph is; the state goes from one buffer to the other and back."""

from __future__ import annotations

from ddpm_deploy.backends.cuda.loop import CONDITION

STATES = ("state", "next_state")
ROW = ("t", "predict", "clip", "update", "log_variance", "guidance")


def input_buffer(name: str, source: int) -> str:
    """The buffer that an input is read from. source: where the state is, see `Evaluator.prepare`."""
    if name == "state":
        return STATES[source]
    if name in ROW:
        return f"row_{name}"
    return name if name == "noise" else CONDITION + name


def output_buffer(name: str, source: int) -> str:
    """The buffer that an output is written to."""
    return STATES[1 - source] if name == "next_state" else name
