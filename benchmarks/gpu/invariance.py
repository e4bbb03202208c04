"""Whether a sample depends on the batch that it rides in: on its slot, its neighbours, padding, and the batch size."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.gpu.paths import Array
from ddpm_deploy import Sampler
from ddpm_deploy.noise import initial_noise
from ddpm_deploy.parity.measure import max_abs

SEED = 1


def batch_invariance(sampler: Sampler, batches: tuple[int, ...]) -> dict[str, Any]:
    """Of the default plan. batches: sizes, ascending; the second is the one that slots are moved in.

    slot, neighbours, padding: whether samples stay bitwise the same. across: max-abs of a sample between the first
    batch size and each of the others.
    """
    if len(batches) < 2:
        raise ValueError(f"batches: got {batches}, expected at least two; another one would have to be compiled")
    n, plan = batches[1], sampler.plan()
    x_T = initial_noise(SEED, range(max(2 * n, *batches)), sampler.manifest.sample_shape)

    def draw(chosen: Array) -> Array:
        return sampler.sample(x_T=chosen, plan=plan, batch_size=len(chosen))

    whole = draw(x_T[:n])
    others = draw(np.concatenate([x_T[:1], x_T[n + 1 : 2 * n]]))
    alone = draw(x_T[: batches[0]])[0]
    across = {f"batch {batch}": max_abs(draw(x_T[:batch])[0], alone) for batch in batches[1:]}
    return {
        "in batches of": n,
        "slot": bool(np.array_equal(draw(x_T[:n][::-1])[::-1], whole)),
        "neighbours": bool(np.array_equal(others[0], whole[0])),
        "padding": bool(np.array_equal(draw(x_T[: n - 1]), whole[: n - 1])) if n > 2 else None,
        "max-abs across batches": across,
    }
