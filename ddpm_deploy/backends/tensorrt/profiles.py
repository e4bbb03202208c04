"""From the free axes of a graph's inputs to optimisation profiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ddpm_deploy.backends.tensorrt.settings import BuildSettings, Range
from ddpm_deploy.bundle import TensorSpec

Shape = tuple[int, ...]
Profile = dict[str, tuple[Shape, Shape, Shape]]

BATCH, ROWS, STATE, COLUMNS = "B", "N", "K", "K_plus_3"
WEIGHTS = "guidance_1"  # of guidance after its rows: one for all, or one for each sample
EXTRA_COLUMNS = 3  # an update row has columns for the K state images, d, m and z


def make_profiles(inputs: Sequence[TensorSpec], settings: BuildSettings) -> tuple[Profile, ...]:
    """One profile per batch size of the settings: {input: (least, tuned for, most) shape}.

    A graph with no free batch gets one profile. Raises ValueError for an axis that nothing is said of.
    """
    free = any(BATCH in spec.shape for spec in inputs)
    ranges = settings.batch_ranges if free else settings.batch_ranges[:1]
    return tuple(_profile(inputs, settings, batch) for batch in ranges)


def relevant(inputs: Sequence[TensorSpec], settings: BuildSettings) -> BuildSettings:
    """The settings without sizes of axes that the graph does not have, so that they do not tell its engines apart."""
    names, default = {axis for spec in inputs for axis in spec.shape}, BuildSettings()
    return replace(
        settings,
        rows=settings.rows if ROWS in names else default.rows,
        state_size=settings.state_size if STATE in names else default.state_size,
        axes=tuple(sorted((name, sizes) for name, sizes in settings.axes if name in names)),
    )


def _profile(inputs: Sequence[TensorSpec], settings: BuildSettings, batch: Range) -> Profile:
    axes = _known_axes(inputs, settings, batch)
    profile: Profile = {}
    for spec in inputs:
        limits = [_limits(spec, axis, axes) for axis in spec.shape]
        least, tuned, most = (tuple(limit[i] for limit in limits) for i in range(3))
        profile[spec.name] = (least, tuned, most)
    return profile


def _known_axes(inputs: Sequence[TensorSpec], settings: BuildSettings, batch: Range) -> dict[str, Range]:
    least, tuned, most = (size + EXTRA_COLUMNS for size in settings.state_size)
    columns = {STATE: settings.state_size, COLUMNS: (least, tuned, most)}
    axes = {**dict(settings.axes), BATCH: batch, ROWS: settings.rows, **columns}
    return axes | _noise_axes(inputs, axes) | {WEIGHTS: (1, *batch[1:])}


def _noise_axes(inputs: Sequence[TensorSpec], axes: Mapping[str, Range]) -> dict[str, Range]:
    """Sizes of `noise` after its rows, where they may be 1 or those of `x_T`."""
    shapes = {spec.name: spec for spec in inputs}
    if "x_T" not in shapes or "noise" not in shapes:
        return {}
    image = [_limits(shapes["x_T"], axis, axes) for axis in shapes["x_T"].shape]
    pairs = zip(shapes["noise"].shape[1:], image, strict=True)
    return {axis: (1, *size[1:]) for axis, size in pairs if isinstance(axis, str) and axis not in axes}


def _limits(spec: TensorSpec, axis: int | str, axes: Mapping[str, Range]) -> Range:
    if isinstance(axis, int):
        return axis, axis, axis
    if axis not in axes:
        raise ValueError(f"axes: got nothing for the free axis {axis} of input {spec.name!r}; give its sizes")
    return axes[axis]
