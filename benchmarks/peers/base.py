"""What a peer is: something else that evaluates the network, or draws the picture, timed beside our own backends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.errors import DdpmDeployError

PRECISIONS = ("fp32", "bf16", "fp16")

Array = NDArray[np.float32]
Evaluate = Callable[[Array, Array], Array]
Draw = Callable[[Array, int], Array]


class PeerUnavailable(DdpmDeployError):
    """A peer that cannot be had for this model or on this machine; the message is the reason, in words for a report."""


@dataclass(frozen=True)
class Setting:
    """How peers are opened.

    batch: what those with static shapes are compiled for. threads: of one call; torch's belong to the whole process.
    steps: network evaluations of a picture (DDPM takes all T). order: of UniPC. cache: a folder that keeps plain
    exports between runs.
    """

    batch: int = 1
    precision: str = "fp32"
    device: str = "cpu"
    threads: int | None = None
    steps: int = 12
    order: int = 3
    cache: Path | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision: got {self.precision!r}, expected one of {', '.join(PRECISIONS)}")

    @property
    def on_cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.startswith("cuda")


def _at_once() -> None:
    """Nothing to wait for: the result is on the host when the call returns."""


@dataclass
class Step:
    """One evaluation of the network: `step(x, t)` with x (B, *S) and t (B,) float32 gives (B, *S'), all on the host.

    description: what was done, for a report's reader. versions: of what computes, by package.
    """

    name: str
    setting: Setting
    description: str
    versions: Mapping[str, str]
    evaluate: Evaluate | None
    synchronise: Callable[[], object] = _at_once

    @property
    def precision(self) -> str:
        """What is computed in; inputs and outputs are float32 all the same."""
        return self.setting.precision

    def __call__(self, x: Array, t: Array) -> Array:
        if self.evaluate is None:
            raise PeerUnavailable(f"{self.name}: is closed; open it again")
        return self.evaluate(x, t)

    def close(self) -> None:
        """Let go of the network."""
        self.evaluate = None


@dataclass
class Picture:
    """A whole reverse loop: `picture(x_T, seed)` with x_T (B, *S) float32 gives samples (B, *S) in network range.

    ours: arguments of `Sampler.sample` with which it draws the same picture, or None where it cannot; parity says how
    near, or why not. own_noise: for a pipeline, which takes no x_T, `own_noise(B, seed)` is the x_T that it draws from
    its generator and the z of each row, to be asked for in the order of the rows; None where x_T is taken as given.
    """

    name: str
    setting: Setting
    solver: str
    steps: int
    description: str
    versions: Mapping[str, str]
    draw: Draw | None
    ours: Mapping[str, Any] | None
    parity: str
    own_noise: Callable[[int, int], tuple[Array, Callable[[int], Array]]] | None = field(default=None)

    def __call__(self, x_T: Array, seed: int = 0) -> Array:
        if self.draw is None:
            raise PeerUnavailable(f"{self.name}: is closed; open it again")
        return self.draw(x_T, seed)

    def close(self) -> None:
        """Let go of the network."""
        self.draw = None


def require_packages(names: Iterable[str]) -> None:
    """PeerUnavailable that names the packages which are not installed."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise PeerUnavailable(f"{', '.join(missing)}: not installed; pip install {' '.join(missing)}")


def versions_of(*packages: str) -> dict[str, str]:
    """What is installed of these; a package of another name, such as onnxruntime-gpu, is found too."""
    return {name: _version(name) for name in packages}


def _version(package: str) -> str:
    for name in (package, f"{package}-gpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"
