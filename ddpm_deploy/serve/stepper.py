"""One step of many samples: one call of the network for all, and one update for all whose rows look alike.

Samples of different plans, at different rows, share the call. The update is the plan's own, applied to stacks of
samples with the same pattern of coefficients; so it is bitwise that of each sample alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.errors import BackendError, NonFiniteError
from ddpm_deploy.guidance import blend
from ddpm_deploy.plan import Row
from ddpm_deploy.sampler import Sampler
from ddpm_deploy.serve.buckets import Buckets
from ddpm_deploy.serve.handle import Preview
from ddpm_deploy.serve.network import evaluate
from ddpm_deploy.serve.sample import Sample

Array = NDArray[Any]


@dataclass
class Tally:
    """Calls of the network. lanes: evaluations asked for. places: those that were computed, padding and tries again
    among them."""

    calls: int = 0
    lanes: int = 0
    places: int = 0


class Stepper:
    """Advances samples on one sampler's backend. Used by one thread.

    Samples which go on together stay in the arrays of the last step, and are not copied. tally: of the last `advance`.
    """

    def __init__(self, sampler: Sampler, buckets: Buckets) -> None:
        self.buckets = buckets
        self.tally = Tally()
        self._sampler = sampler
        self._backend = sampler.backend
        self._channels = sampler.manifest.sample_shape[0]
        (self._output,) = (spec.name for spec in sampler.backend.outputs)
        self._running: dict[int, Sample] = {}
        self._conditions: tuple[Sequence[Mapping[str, Array]], dict[str, Array]] = ((), {})

    def advance(self, samples: Sequence[Sample]) -> dict[Sample, Exception]:
        """Take each sample through one row, or tell what it failed with. All are of one shape."""
        self.tally = Tally()
        self._detach_all_but(samples)
        for sample in samples:
            sample.begin()
        groups = [_gathered(group) for group in _groups(samples)]
        order = [sample for group, _ in groups for sample in group]
        m, errors = self._predictions(order, _joined([stack[0] for _, stack in groups]))
        begin = 0
        with np.errstate(all="ignore"):  # what overflows shows in the next prediction, or in the end
            for group, stack in groups:
                if m is not None:
                    self._update(group, stack, m[begin : begin + len(group), : group[0].channels], errors)
                begin += len(group)
        self._running = {sample.number: sample for sample in order if sample not in errors and sample.left}
        return errors

    def works(self) -> bool:
        """Whether the device computes anything at all: if it does, it was the samples that it could not."""
        try:
            self._sampler.warmup(self.buckets.sizes[0])
        except (BackendError, MemoryError):
            return False
        return True

    # -- the network ----------------------------------------------------------------------------------------------

    def _predictions(self, order: Sequence[Sample], x: Array) -> tuple[Array | None, dict[Sample, Exception]]:
        """The output (B, *S') after guidance, and which samples have none; x: (B, *S).

        First come the lanes of all samples, then those away from the condition of the ones that are guided.
        """
        guided = [i for i, sample in enumerate(order) if sample.lanes == 2]
        lanes = [*order, *(order[i] for i in guided)]
        t = np.array([sample.t for sample in lanes], np.float32)
        if guided:
            x = np.concatenate([x, x[guided]])
        feeds = {"x": x, "t": t, **self._condition(order, guided)}
        self.tally.lanes += len(lanes)
        m, failed = evaluate(self._run, feeds, self.buckets)
        errors = {lanes[lane]: error for lane, error in failed.items()}
        if m is None:
            return None, errors
        errors |= _not_finite(m, lanes, errors)
        if guided:
            weights = np.array([order[i].weight for i in guided], np.float32)
            with np.errstate(all="ignore"):  # of samples that failed
                m[guided] = blend(m[guided], m[len(order) :], weights, self._channels)
        return m, errors

    def _run(self, feeds: Mapping[str, Array]) -> Array:
        self.tally.calls += 1
        self.tally.places += len(feeds["t"])
        return self._backend.run(feeds)[self._output]

    def _condition(self, order: Sequence[Sample], guided: Sequence[int]) -> dict[str, Array]:
        """The conditions of all lanes, kept while the same lanes go on."""
        if not order[0].condition:
            return {}
        wanted = [sample.null if sample.weight == 0 else sample.condition for sample in order]
        wanted += [order[i].null for i in guided]
        kept, tensors = self._conditions
        if len(kept) != len(wanted) or not all(map(is_, kept, wanted)):
            tensors = {name: np.stack([lane[name] for lane in wanted]) for name in wanted[0]}
            self._conditions = wanted, tensors
        return tensors

    # -- the update -----------------------------------------------------------------------------------------------

    def _update(self, group: list[Sample], stack: list[Array], m: Array, errors: dict[Sample, Exception]) -> None:
        """Apply each sample's row to a group of one pattern; those that failed are left out, and may become more."""
        going = [i for i, sample in enumerate(group) if sample not in errors]
        if not going:
            return
        if len(going) < len(group):
            group, stack, m = [group[i] for i in going], [images[going] for images in stack], m[going]
        row = Row.stack([sample.program for sample in group], stack[0].ndim - 1)
        z = _joined([sample.noise() for sample in group]) if row.draws else None
        state, x0 = row.apply(stack, m, z)
        for i, sample in enumerate(group):
            if sample.row + 1 == sample.rows and not np.isfinite(state[0][i]).all():
                errors[sample] = NonFiniteError(f"row {sample.row} (t = {sample.t:g}): the sample is not finite")
                continue
            if sample.handle.wants_preview(sample.row, sample.rows) and np.isfinite(x0[i]).all():
                preview = Preview(sample.index, sample.row, sample.rows, sample.t, np.array(x0[i]))
                sample.handle.show(preview)
            sample.go_on(state, i)

    def _detach_all_but(self, samples: Sequence[Sample]) -> None:
        """Copy the states of those that pause, or each would hold the memory of its whole batch."""
        numbers = {sample.number for sample in samples}
        for number, sample in self._running.items():
            if number not in numbers:
                sample.detach()


def _groups(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Samples whose present rows can be stacked, together."""
    groups: dict[Any, list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.program.pattern, sample.channels), []).append(sample)
    return list(groups.values())


def _gathered(group: Sequence[Sample]) -> tuple[list[Sample], list[Array]]:
    """A group in the order of the stacks that its samples are in, and its states as one stack, K arrays (B, *S)."""
    parts: dict[int, list[Sample]] = {}
    for sample in group:
        parts.setdefault(id(sample.stack), []).append(sample)
    stacks = [_taken(part) for part in parts.values()]
    stack = stacks[0] if len(stacks) == 1 else [np.concatenate(images) for images in zip(*stacks, strict=True)]
    return [sample for part in parts.values() for sample in part], stack


def _taken(part: Sequence[Sample]) -> list[Array]:
    """The states of samples of one stack: that itself, where these are all of it."""
    stack, places = part[0].stack, [sample.place for sample in part]
    assert stack is not None
    return stack if places == list(range(len(stack[0]))) else [images[places] for images in stack]


def _not_finite(m: Array, lanes: Sequence[Sample], known: Mapping[Sample, Exception]) -> dict[Sample, Exception]:
    """The samples for which the network predicted NaN or infinity, in the channels that their plans take."""
    if np.isfinite(m).all():
        return {}
    return {
        sample: NonFiniteError(f"row {sample.row} (t = {sample.t:g}): the network's output is not finite")
        for sample, output in zip(lanes, m, strict=True)
        if sample not in known and not np.isfinite(output[: sample.channels]).all()
    }


def _joined(arrays: Sequence[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
