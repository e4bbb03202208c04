"""What is timed: our own sampler on each runtime, open and ready, in the one form that peers have as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.asked import Group
from ddpm_deploy import Sampler
from ddpm_deploy.bench.truth import SEED
from ddpm_deploy.plan import Plan

if TYPE_CHECKING:
    from benchmarks.gpu.subject import Subject

COMPILED = "torch, compiled"
OWN = ("torch", "onnxruntime", "tensorrt", "tensorrt-rtx", COMPILED)
SECONDS = {COMPILED: 100.0, "tensorrt": 60.0, "tensorrt-rtx": 60.0}  # to open the first time, where nothing is known
ON_HOST = "driven by the host"

Array = NDArray[Any]
Evaluate = Callable[[Mapping[str, Array]], Array]


@dataclass(frozen=True, eq=False)
class OwnNoise:
    """What a path draws by itself. name: one for all that draw the same. z: of a row, asked for in their order."""

    name: str
    x_T: Array  # noqa: N815
    z: Callable[[int], Array]


def _nothing() -> None:
    """Nothing to close."""


@dataclass(frozen=True, eq=False)
class Path:
    """A contender of one group.

    draw: a whole sampling from the seed's noise to samples (B, *S) on the host. plan: with which the reference draws
    the same. evaluate: one evaluation of the network, from `x` and `t` of the group's batch; None for a path that shows
    none. noise: of a path that does not take the seed's. note: for the report's reader.
    """

    draw: Callable[[], Array]
    plan: Plan
    evaluate: Evaluate | None = None
    note: str = ""
    noise: OwnNoise | None = None
    close: Callable[[], object] = _nothing


def open_own(contender: str, group: Group, subject: Subject, *, twin: bool = False) -> Path:
    """Our sampler, with its loop on the device where the backend has one."""
    sampler = subject.sampler(contender, group.precision, twin=twin)
    plan, n = sampler.plan(group.solver, group.steps), group.batch
    loop = sampler.backend.details.get("loop", ON_HOST)
    return Path(
        draw=lambda: sampler.sample(n, plan=plan, seed=SEED, batch_size=n),
        plan=plan,
        evaluate=lambda feeds: one_evaluation(sampler, feeds),
        note=f"the loop is {loop}",
    )


def one_evaluation(sampler: Sampler, feeds: Mapping[str, Array]) -> Array:
    """The network's raw output, through the very loop that draws the samples."""
    return sampler.sample(x_T=feeds["x"], plan=probe(float(feeds["t"][0])), batch_size=len(feeds["x"]))


def probe(t: float) -> Plan:
    """A plan of one row whose sample is the network's raw output at t."""
    update = np.array([[[0.0, 0.0, 1.0, 0.0]]])  # of x, d, m, z
    return Plan("probe", ("x",), np.array([t]), np.array([[0.0, 1.0]]), np.array([[-np.inf, np.inf]]), update)
