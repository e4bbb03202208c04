"""Bits/dim of a runtime: the variational bound, respaced, on samples of the reference itself.

A trained network's own samples stand for data, so that the figure can be had wherever a bundle is. Two runtimes see the
same noisy states, so that their difference is far more exact than either figure; with few rows both are large.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.bundle import Manifest
from ddpm_deploy.job import kept_channels
from ddpm_deploy.noise import row_noise
from ddpm_deploy.parity.next_state import Evaluate, ddpm_plan

SEED = 1  # another than that of the trajectories

Array = NDArray[Any]


def bits_per_dim(
    evaluate: Evaluate, manifest: Manifest, x0: Array, conditions: Mapping[str, Array], rows: int
) -> float:
    """The KL terms of the bound over `rows` respaced steps (Ho et al. 2020, eq. 5, without L_T and L_0).

    With the posterior's variance each is half the fall of the signal-to-noise ratio times the squared error of the
    predicted clean sample (Kingma et al. 2021, eq. 13). x0: (n, *S) clean samples. conditions: (n, ...) each.
    """
    plan = ddpm_plan(manifest, rows)
    alpha, sigma = manifest.schedule.at(plan.t)
    snr, channels = (alpha / sigma) ** 2, kept_channels(manifest, plan)
    total = 0.0
    for row, t in enumerate(plan.t[:-1]):
        noise = row_noise(SEED, range(len(x0)), row, x0.shape[1:])
        x = (alpha[row] * x0 + sigma[row] * noise).astype(np.float32)
        m = evaluate({"x": x, "t": np.full(len(x0), t, np.float32), **conditions})[:, :channels]
        p_x, p_m = plan.predict[row]
        d = np.clip(p_x * x.astype(np.float64) + p_m * m[:, : x0.shape[1]], *plan.clip[row])
        total += (snr[row + 1] - snr[row]) / 2 * float(np.mean((d - x0) ** 2))
    return total / math.log(2)
