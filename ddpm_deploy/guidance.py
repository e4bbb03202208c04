"""Classifier-free guidance: how far each sample is drawn beyond what the network says of its condition, and when."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddpm_deploy.bundle import Condition, Manifest
from ddpm_deploy.plan import Denoise

Array = NDArray[Any]
Evaluate = Callable[[Array, Array, Mapping[str, Array]], Array]


@dataclass(frozen=True, eq=False)
class Guidance:
    """weight: (n,) float32; 1 is the condition as it is, 0 none, more than 1 exaggerates it.

    interval: the lowest and the highest t at which the weight counts; at any other it is 1 (Kynkaanniemi et al. 2024).
    """

    weight: NDArray[np.float32]
    interval: tuple[float, float] | None = None

    def counts(self, t: ArrayLike) -> NDArray[np.bool_]:
        """Whether the weight counts at each t."""
        low, high = (np.float32(end) for end in self.interval or (-np.inf, np.inf))
        t = np.asarray(t, np.float32)
        return (low <= t) & (t <= high)

    def at(self, t: ArrayLike) -> NDArray[np.float32]:
        """The weights at each sample's own t, (n,) or one for all."""
        return np.where(self.counts(t), self.weight, np.float32(1))

    def rows(self, t: ArrayLike) -> NDArray[np.float32]:
        """(N, n), the weights at each row of a plan, as the `sampler` graph takes them. t: (N,)."""
        weights = self.at(np.asarray(t)[:, None])
        return np.ascontiguousarray(np.broadcast_to(weights, (len(np.asarray(t)), len(self.weight))))

    def part(self, chunk: slice) -> Guidance:
        """That of some of the samples."""
        return Guidance(self.weight[chunk], self.interval)


def checked_guidance(
    weight: ArrayLike, interval: Sequence[float] | None, manifest: Manifest, steered: bool, n: int
) -> Guidance | None:
    """The guidance of n samples, or None where every weight is 1, so that there is nothing to do.

    weight: a number or (n,). steered: whether the request gives a condition. Raises ValueError.
    """
    weights = np.asarray(weight)
    if weights.shape not in ((), (n,)) or weights.dtype.kind not in "iuf" or not np.isfinite(weights).all():
        got = f"{weights.dtype} {weights.shape}" if weights.ndim else repr(weight)
        raise ValueError(f"guidance: got {got}, expected a finite number or ({n},) of them")
    if np.all(weights == 1):
        if interval is not None:
            raise ValueError("guidance_interval: given beside a guidance of 1, which it cannot change; give guidance")
        return None
    if not manifest.guided:
        raise ValueError("guidance: got a weight, but the model has no condition with a null; leave it out")
    if not steered:
        raise ValueError("guidance: got a weight, but no condition to be guided towards; give the condition too")
    return Guidance(np.broadcast_to(weights, (n,)).astype(np.float32), _checked_interval(interval))


def _checked_interval(interval: Sequence[float] | None) -> tuple[float, float] | None:
    if interval is None:
        return None
    if np.shape(interval) != (2,) or not interval[0] <= interval[1]:
        raise ValueError(f"guidance_interval: got {interval!r}, expected (low, high) in timesteps, low <= high")
    return float(interval[0]), float(interval[1])


def without(condition: Mapping[str, Array], known: Sequence[Condition]) -> dict[str, Array]:
    """The same tensors with the null in each that has one. condition: (B, ...) each."""
    nulls = {each.name: each.null for each in known}
    return {
        name: array if nulls[name] is None else np.full_like(array, nulls[name]) for name, array in condition.items()
    }


def guided(
    evaluate: Evaluate, condition: Mapping[str, Array], null: Mapping[str, Array], guidance: Guidance, channels: int
) -> Denoise:
    """The network under guidance, as a plan calls it: both halves in one doubled batch, or one where that is enough.

    evaluate: (x (B, *S), t (B,), condition) -> raw output. null: the condition of the half without. channels: of the
    prediction; the output's others are of a learned variance.
    """
    both = {name: np.concatenate([condition[name], null[name]]) for name in condition}

    def denoise(x: Array, t: Array) -> Array:
        weight = guidance.at(t)
        if np.all(weight == 1):
            return evaluate(x, t, condition)
        if not weight.any():
            return evaluate(x, t, null)
        toward, away = np.split(evaluate(np.concatenate([x, x]), np.concatenate([t, t]), both), 2)
        return blend(toward, away, weight, channels)

    return denoise


def guided_feeds(
    evaluate: Callable[[Mapping[str, Array]], Array], manifest: Manifest, weight: Array
) -> Callable[[Mapping[str, Array]], Array]:
    """An evaluation of the network by its feeds, x, t and the conditions, under guidance. weight: (B,), or more."""

    def evaluate_both(feeds: Mapping[str, Array]) -> Array:
        condition = {each.name: feeds[each.name] for each in manifest.conditions}
        away = evaluate({**feeds, **without(condition, manifest.conditions)})
        return blend(evaluate(feeds), away, weight[: len(away)], manifest.sample_shape[0])

    return evaluate_both


def blend(toward: Array, away: Array, weight: Array, channels: int) -> Array:
    """`m_u + w (m_c - m_u)` (Ho & Salimans 2022, eq. 6, whose w is ours less 1), exactly m_c for 1 and m_u for 0.

    toward, away: m_c and m_u, (B, *S'). weight: (B,). channels: of the prediction; a learned variance, which follows
    in the others, is interpolated and never exaggerated: its weight is w within [0, 1].
    """
    w = weight.astype(toward.dtype).reshape(-1, *[1] * (toward.ndim - 1))
    w = np.repeat(w, toward.shape[1], axis=1)
    np.clip(w[:, channels:], 0, 1, out=w[:, channels:])
    return w * toward + (1 - w) * away
