"""Sampling with one call: a plan and a `sampler` graph instead of a loop over the denoiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddpm_deploy.backends import Backend
from ddpm_deploy.bundle import TensorSpec
from ddpm_deploy.plan import Noise, Plan
from ddpm_deploy.plan.feeds import Feeds, plan_feeds


def sample_with_graph(
    backend: Backend,
    plan: Plan,
    x_T: NDArray[np.float32],
    noise: Noise = None,
    condition: Mapping[str, NDArray[Any]] | None = None,
    guidance: ArrayLike = 1.0,
) -> NDArray[np.float32]:
    """Draw samples (B, *S) in network range.

    backend: opened with `role="sampler"`. x_T: (B, *S). noise: as in `Plan.run`. condition: (B, ...) each, of the
    dtypes of the backend's inputs. guidance: broadcastable to (N, B), such as what `Guidance.rows` gives.
    """
    return backend.run({**sampler_feeds(backend.inputs, plan, x_T, noise, guidance), **(condition or {})})["samples"]


def sampler_feeds(
    inputs: Sequence[TensorSpec],
    plan: Plan,
    x_T: NDArray[np.float32],
    noise: Noise = None,
    guidance: ArrayLike = 1.0,
) -> Feeds:
    """Everything but the conditions, in the shapes that this graph takes: x_T, the tables, the noise, the weights.

    inputs: of the graph, as its backend or its record in the bundle lists them. Raises ValueError for noise that does
    not broadcast to (N, B, *S), guidance that does not to (N, B) or that the graph does not take, and for a graph that
    was unrolled for one plan and takes no other.
    """
    specs = {spec.name: spec for spec in inputs}
    if "update" not in specs:
        raise ValueError(f"inputs: got {', '.join(specs)}, as of a graph unrolled for one plan; feed it as it is")
    K, rank = specs["update"].shape[1], x_T.ndim - 1
    size = K if isinstance(K, int) else None
    feeds = plan_feeds(plan, rank, noise, learned_variance="log_variance" in specs, state_size=size)
    whole = (len(plan), *x_T.shape)
    try:
        full = np.broadcast_to(feeds["noise"], whole)
    except ValueError:
        raise ValueError(f"noise: got shape {feeds['noise'].shape}, expected one that broadcasts to {whole}") from None
    if specs["noise"].shape[1] == specs["x_T"].shape[0]:  # then the graph broadcasts nothing itself
        feeds["noise"] = np.ascontiguousarray(full)
    return {"x_T": x_T, **feeds, **_weights(specs, np.asarray(guidance, np.float32), whole[:2])}


def _weights(specs: Mapping[str, TensorSpec], guidance: NDArray[np.float32], whole: tuple[int, int]) -> Feeds:
    """`guidance` (N, B), or (N, 1) where it is one number and the graph broadcasts."""
    if "guidance" not in specs:
        if np.any(guidance != 1):
            raise ValueError("guidance: got a weight, but the graph takes none; its model has no condition with a null")
        return {}
    one = guidance.ndim == 0 and specs["guidance"].shape[1] != specs["x_T"].shape[0]
    shape = (whole[0], 1) if one else whole
    try:
        return {"guidance": np.ascontiguousarray(np.broadcast_to(guidance, shape))}
    except ValueError:
        raise ValueError(f"guidance: got shape {guidance.shape}, expected one that broadcasts to {whole}") from None
