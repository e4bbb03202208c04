"""What to write and how to judge it; imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from ddpm_deploy.export.targets import GPU_TARGETS, PRECISIONS, GraphFile, graph_files
from ddpm_deploy.parity.budget import Budget

MAX_RELATIVE_ERROR = 1e-5  # see parity.budget
MAX_UNROLLED_ROWS = 16


@dataclass(frozen=True)
class Options:
    """Settings of an export.

    targets, precisions: see `targets.TARGETS`. graphs: None writes all that the targets have. opset: None is the
    fastest of each target. batches: sizes that parity is checked at, the buckets of the engines among them.
    free_size: leave height and width of pictures free; refused where the network takes one size only.
    unroll: write `sampler` without control flow, for the model's default plan; None does so for onnxruntime-cuda, where
    it can be captured, if the plan has at most 16 rows. parity_timesteps: how many timesteps parity is checked at,
    None for all T. max_relative_error: budget of the relative L2 error of an fp32 prediction. budgets: changes to the
    budgets of other precisions, such as `{"fp16": {"next_state_rms": 1e-3}}`, see `parity.budget.Budget`.
    share_weights: keep large tensors in one file, which the graphs share; None does so where a graph would be over
    2 GB, and False refuses that. calibration_states: how many states int8 is calibrated on. calibration_seed: of
    their noise.
    allow_parity_failure: write all the same what is over budget, marked as such. progress: show a bar on a terminal.
    """

    targets: tuple[str, ...] = ("onnxruntime-cpu",)
    precisions: tuple[str, ...] = ("fp32",)
    graphs: tuple[str, ...] | None = None
    opset: int | None = None
    batches: tuple[int, ...] = (1, 2, 7)
    free_size: bool = False
    unroll: bool | None = None
    max_relative_error: float = MAX_RELATIVE_ERROR
    budgets: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    parity_timesteps: int | None = None
    share_weights: bool | None = None
    calibration_states: int = 64
    calibration_seed: int = 0
    rank_layers: bool = False
    allow_parity_failure: bool = False
    progress: bool = False

    def __post_init__(self) -> None:
        _require_positive("max_relative_error", self.max_relative_error)
        for precision, bounds in self.budgets.items():
            _check_budget(precision, bounds)
        if self.parity_timesteps is not None and self.parity_timesteps < 1:
            raise ValueError(f"parity_timesteps: got {self.parity_timesteps}, expected at least 1, or None for all")
        if self.calibration_states < 2:
            raise ValueError(f"calibration_states: got {self.calibration_states}, expected at least 2")
        if not self.batches or min(self.batches) < 1:
            raise ValueError(f"batches: got {list(self.batches)}, expected one or more whole numbers of at least 1")
        targets = {file.target for file in self.files()}
        if self.unroll and not targets & set(GPU_TARGETS):
            raise ValueError(
                f"unroll: of no use to {', '.join(self.targets)}; only {' and '.join(GPU_TARGETS)} capture"
            )

    def files(self) -> tuple[GraphFile, ...]:
        """The graphs to write, the portable denoiser first."""
        return graph_files(self.targets, self.precisions, self.graphs, self.opset)


def _check_budget(precision: str, bounds: Mapping[str, float]) -> None:
    if precision not in PRECISIONS[1:]:
        raise ValueError(f"budgets: got {precision!r}, expected some of {', '.join(PRECISIONS[1:])}")
    if not isinstance(bounds, Mapping):
        raise ValueError(f"budgets.{precision}: got {bounds!r}, expected names of bounds with numbers")
    known = [member.name for member in fields(Budget)]
    for name, bound in bounds.items():
        if name not in known:
            raise ValueError(f"budgets.{precision}: got {name!r}, expected some of {', '.join(known)}")
        _require_positive(f"budgets.{precision}.{name}", bound)


def _require_positive(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name}: got {value}, expected a positive number")
