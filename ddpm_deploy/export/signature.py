"""Names, shapes and dtypes of what the `step` and `sampler` graphs take and give."""

from __future__ import annotations

from collections.abc import Sequence

from ddpm_deploy.bundle import TensorSpec
from ddpm_deploy.bundle.manifest import BATCH, PORTABLE
from ddpm_deploy.export.targets import TARGETS
from ddpm_deploy.plan.feeds import STATE_SIZE

KNOWN = (PORTABLE, *TARGETS)
FIXED_STATE = ("tensorrt",)  # plans of smaller states are padded there
ROWS = "N"

Specs = tuple[TensorSpec, ...]
Shape = Sequence[int | str]


def step_specs(
    inputs: Sequence[TensorSpec],
    sample_shape: Shape,
    *,
    state_size: int,
    learned_variance: bool,
    guided: bool = False,
) -> tuple[Specs, Specs]:
    """Inputs and outputs of the `step` graph; arguments as in `build_step`."""
    image = (BATCH, *sample_shape)
    state = (BATCH, state_size, *sample_shape)
    taken = (_float("state", state), *_tables(BATCH, state_size, learned_variance), _float("noise", image))
    weight = (_float("guidance", (BATCH,)),) if guided else ()
    return (*taken, *weight, *inputs[2:]), (
        _float("next_state", state),
        _float("x0", image),
        _float("finite", (BATCH,)),
    )


def sampler_specs(
    inputs: Sequence[TensorSpec],
    sample_shape: Shape,
    *,
    learned_variance: bool,
    target: str,
    state_size: int | None = None,
    guided: bool = False,
) -> tuple[Specs, Specs]:
    """Inputs and outputs of the `sampler` graph; arguments as in `build_sampler`."""
    image = (BATCH, *sample_shape)
    tables = _tables(ROWS, fixed_state(target, state_size), learned_variance)
    taken = (_float("x_T", image), *tables, _noise(ROWS, sample_shape, target), *_guidance(ROWS, target, guided))
    return (*taken, *inputs[2:]), (_float("samples", image),)


def unrolled_specs(
    inputs: Sequence[TensorSpec],
    sample_shape: Shape,
    *,
    rows: int,
    draws_noise: bool,
    target: str,
    guided: bool = False,
) -> tuple[Specs, Specs]:
    """Inputs and outputs of the unrolled sampler of a plan with so many rows."""
    image = (BATCH, *sample_shape)
    noise = (_noise(rows, sample_shape, target),) if draws_noise else ()
    taken = (_float("x_T", image), *noise, *_guidance(rows, target, guided))
    return (*taken, *inputs[2:]), (_float("samples", image),)


def fixed_state(target: str, state_size: int | None) -> int | None:
    """K of a sampler for the target, or None where it is free."""
    return STATE_SIZE if state_size is None and target in FIXED_STATE else state_size


def require_target(target: str, known: Sequence[str] = KNOWN) -> None:
    """Raise ValueError for a target that the graph is not made for."""
    if target not in known:
        raise ValueError(f"target: got {target!r}, expected one of {', '.join(known)}")


def _noise(rows: int | str, sample_shape: Shape, target: str) -> TensorSpec:
    """Noise that broadcasts to (N, B, *S); of exactly that shape where the optimiser wants to know it."""
    image = (BATCH, *sample_shape)
    if target in FIXED_STATE:
        return _float("noise", (rows, *image))
    return _float("noise", (rows, *(1 if size == 1 else f"noise_{axis}" for axis, size in enumerate(image))))


def _guidance(rows: int | str, target: str, guided: bool) -> Specs:
    """The weight of each row, and of each sample or of all; of each where the optimiser wants to know."""
    each = BATCH if target in FIXED_STATE else "guidance_1"
    return (_float("guidance", (rows, each)),) if guided else ()


def _tables(rows: str, state_size: int | None, learned_variance: bool) -> Specs:
    K: int | str = "K" if state_size is None else state_size
    columns: int | str = "K_plus_3" if state_size is None else state_size + 3
    tables = [_float("t", (rows,)), _float("predict", (rows, 2)), _float("clip", (rows, 2))]
    variance = [_float("log_variance", (rows, 2))] if learned_variance else []
    return (*tables, _float("update", (rows, K, columns)), *variance)


def _float(name: str, shape: Sequence[int | str]) -> TensorSpec:
    return TensorSpec(name, tuple(shape), "float32")
