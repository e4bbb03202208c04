"""Bits/dim of a runtime: the middle of the variational bound, respaced, on samples of the reference itself.

A trained network's own samples stand for data, so that the figure can be had wherever a bundle is. Two runtimes see the
same noisy states, so that their difference is far more exact than either figure; with few rows both are large.
`ddpm_deploy.evaluate` measures the whole bound on real data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.bundle import Manifest
from ddpm_deploy.evaluate.bound import BITS, ReverseChain, Task, measure_row
from ddpm_deploy.parity.next_state import Evaluate, ddpm_plan

SEED = 1  # another than that of the trajectories

Array = NDArray[Any]


def bits_per_dim(
    evaluate: Evaluate, manifest: Manifest, x0: Array, conditions: Mapping[str, Array], rows: int
) -> float:
    """The KL terms of the bound over `rows` respaced steps (Ho et al. 2020, eq. 5, without L_T and L_0).

    x0: (n, *S) clean samples. conditions: (n, ...) each.
    """
    chain = ReverseChain.of(manifest, len(ddpm_plan(manifest, rows)))
    task = Task(x0, conditions, None, seed=SEED, batch_size=len(x0))
    middle = [measure_row(evaluate, chain, task, row).mean() for row in range(len(chain) - 1)]
    return float(np.sum(middle)) * BITS
