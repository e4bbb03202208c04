"""What an engine is built for and how: everything that the builder is told, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

Range = tuple[int, int, int]

TENSORRT, TENSORRT_RTX = "tensorrt", "tensorrt-rtx"
COMPATIBILITIES = ("none", "ampere_plus", "same_compute_capability")
CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
MAX_LEVEL = 5
MAX_PROFILES = 16
MAX_SIZE = 2**31 - 1
MIB = 2**20

# Settings that a runtime does not have, and what to do instead.
ABSENT = {
    TENSORRT: {"compute_capabilities": "it builds for the GPU of this machine; use hardware_compatibility"},
    TENSORRT_RTX: {
        "optimization_level": "its engines are the same at every level, as kernels are tuned when they first run",
        "hardware_compatibility": "its engines run on every GPU of their compute_capabilities",
        "version_compatible": "it comes without the lean runtime that this takes",
        "timing_cache": "it times nothing when it builds",
    },
}


@dataclass(frozen=True)
class BuildSettings:
    """Shapes that an engine takes and options of its builder; None leaves an option to the runtime.

    batches: sizes to tune for, one optimisation profile each; together they take every batch from 1 to the largest.
    rows, state_size: (least, tuned for, most) evaluations and state images of a plan, for `sampler` graphs.
    axes: (least, tuned for, most) of other free axes by their name, such as H and W.
    hardware_compatibility: "none", "ampere_plus" or "same_compute_capability". strip_weights: leave the weights out of
    the engine, to be refitted from the same ONNX file. refit: keep the weights replaceable. timing_cache: reuse timings
    of earlier builds, None where the runtime has such a cache. compute_capabilities: such as "8.9", TensorRT-RTX only.
    """

    batches: tuple[int, ...] = (1,)
    rows: Range = (1, 20, 1000)
    state_size: Range = (1, 3, 6)
    axes: tuple[tuple[str, Range], ...] = ()
    optimization_level: int | None = None
    workspace_bytes: int | None = None
    hardware_compatibility: str | None = None
    version_compatible: bool = False
    strip_weights: bool = False
    refit: bool = False
    timing_cache: bool | None = None
    compute_capabilities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_batches(self.batches)
        for name, limits in (("rows", self.rows), ("state_size", self.state_size), *self.axes):
            _check_range(name, limits)
        _check_names([name for name, _ in self.axes])
        _check_whole("optimization_level", self.optimization_level, 0, MAX_LEVEL)
        _check_whole("workspace_bytes", self.workspace_bytes, MIB, 2**50)
        _check_choices("hardware_compatibility", [self.hardware_compatibility or "none"], COMPATIBILITIES)
        _check_choices("compute_capabilities", self.compute_capabilities, CAPABILITIES)
        if self.strip_weights and self.refit:
            raise ValueError(
                "strip_weights, refit: got both, expected one; a stripped engine is refitted from its file"
            )

    def require_known(self, runtime: str) -> None:
        """Raise ValueError naming a setting that the runtime does not have."""
        defaults = BuildSettings()
        for name, instead in ABSENT[runtime].items():
            if getattr(self, name) != getattr(defaults, name):
                raise ValueError(f"{name}: {runtime} has no such setting: {instead}; leave it out")

    @property
    def batch_ranges(self) -> tuple[Range, ...]:
        """(least, tuned for, most) of each profile."""
        return tuple(
            (below + 1, batch, batch) for below, batch in zip((0, *self.batches[:-1]), self.batches, strict=True)
        )


def setting_names() -> tuple[str, ...]:
    """The names of all settings, in their order."""
    return tuple(field.name for field in fields(BuildSettings))


def _check_batches(batches: Sequence[int]) -> None:
    for batch in batches:
        _check_whole("batches", batch, 1, MAX_SIZE)
    if not batches or sorted(set(batches)) != list(batches) or len(batches) > MAX_PROFILES:
        raise ValueError(f"batches: got {list(batches)}, expected 1 to {MAX_PROFILES} sizes, each larger than the last")


def _check_range(name: str, limits: Sequence[int]) -> None:
    if len(limits) != 3 or any(type(limit) is not int for limit in limits) or limits[0] < 1:
        raise ValueError(f"{name}: got {limits!r}, expected three whole numbers: least, tuned for, most")
    if not limits[0] <= limits[1] <= limits[2] <= MAX_SIZE:
        raise ValueError(f"{name}: got {limits!r}, expected least <= tuned for <= most <= {MAX_SIZE}")


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if not name.isidentifier() or names.count(name) > 1 or name in ("B", "N", "K"):
            raise ValueError(f"axes: got {name!r}, expected each name once, apart from B, N and K")


def _check_whole(name: str, value: int | None, low: int, high: int) -> None:
    if value is not None and (type(value) is not int or not low <= value <= high):
        raise ValueError(f"{name}: got {value!r}, expected a whole number in [{low}, {high}]")


def _check_choices(name: str, values: Sequence[str], known: Sequence[str]) -> None:
    for value in values:
        if value not in known or values.count(value) > 1:
            raise ValueError(f"{name}: got {value!r}, expected some of {', '.join(known)}, each once")
