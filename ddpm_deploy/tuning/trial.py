"""Trying candidates: first parity with what the bundle records, without torch, then speed, side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

import numpy as np

from ddpm_deploy.backends import Backend, open_backend
from ddpm_deploy.backends.base import one_line
from ddpm_deploy.bench.measure import Contender, Effort, interleave
from ddpm_deploy.bench.statistics import paired_ratio
from ddpm_deploy.bundle import Bundle, Manifest
from ddpm_deploy.errors import BackendError, BackendUnavailable, BundleError
from ddpm_deploy.job import example_conditions
from ddpm_deploy.noise import initial_noise
from ddpm_deploy.parity.budget import budget_for
from ddpm_deploy.parity.measure import relative_l2
from ddpm_deploy.parity.next_state import picture_range
from ddpm_deploy.parity.recorded import compare_recorded, recorded_reference
from ddpm_deploy.reference import Reference
from ddpm_deploy.sampler import Sampler
from ddpm_deploy.tuning.choice import choose
from ddpm_deploy.tuning.question import Candidate
from ddpm_deploy.tuning.record import Bucket, Verdict

BATCHES = (1, 2, 4, 8, 16, 32)
FIRST_LOOK = Effort(budget_s=0.0, min_rounds=3, max_rounds=3, max_warmup=1)
HOPELESS = 2.0  # times as slow as the fastest in the first look
LONG_S = 1.0
APART = {"fp32": 1e-5}  # relative L2 of a sample in a batch from itself alone
APART_REDUCED = 0.05

Open = Callable[[Candidate], Backend]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Timings:
    """Of one batch size. seconds: of each round, by label. slower, failed: as in `Bucket`."""

    batch: int
    seconds: Mapping[str, Sequence[float]]
    slower: Mapping[str, float]
    failed: Mapping[str, str]

    @property
    def ms(self) -> dict[str, float]:
        """Of one call, the median of the rounds, by label."""
        return {label: 1e3 * median(times) for label, times in self.seconds.items()}

    @property
    def ratios(self) -> dict[str, float]:
        """The time of each over that of the fastest in the same round, in the median of the rounds."""
        fastest = min(self.seconds, key=lambda label: median(self.seconds[label]))
        return {label: paired_ratio(times, self.seconds[fastest]).value for label, times in self.seconds.items()}


def opener(bundle: Bundle) -> Open:
    """Opens candidates on a bundle's denoiser."""
    return lambda one: open_backend(
        one.backend, bundle, precision=one.precision, device=one.device, threads=one.threads
    )


def judge_all(candidates: Sequence[Candidate], bundle: Bundle, opened: Open, tell: Tell) -> list[Verdict]:
    """Each candidate on the bundle's recorded reference; only one is open at a time.

    Raises BundleError where the bundle records none, BackendUnavailable where no candidate passes.
    """
    if bundle.manifest.reference is None:
        raise BundleError(
            f"{bundle.root}: records no reference, with which 'auto' compares backends; export the model again, or "
            "name a backend"
        )
    reference, verdicts = recorded_reference(bundle), []
    for candidate in candidates:
        tell(f"parity of {candidate.label}")
        verdicts.append(judge(candidate, bundle.manifest, reference, opened))
    if not any(verdict.reason is None for verdict in verdicts):
        reasons = "; ".join(f"{verdict.candidate.label}: {verdict.reason}" for verdict in verdicts)
        raise BackendUnavailable(f"backend 'auto': nothing to choose from: {reasons or 'no runtime is installed'}")
    return verdicts


def judge(candidate: Candidate, manifest: Manifest, reference: Reference, opened: Open) -> Verdict:
    """One candidate against the budget of its precision."""
    described = (candidate.backend, candidate.precision, candidate.device, candidate.threads)
    try:
        budget = budget_for(candidate.precision)
        with opened(candidate) as backend:
            sampler = {candidate.label: Sampler(backend, manifest)}
            (measured,) = compare_recorded(reference, sampler, picture_range(manifest))
    except Exception as error:  # whatever a runtime raises, the others are still to be tried
        return Verdict(*described, reason=one_line(error))
    failures = budget.failures(measured)
    return Verdict(
        *described,
        reason=f"over its parity budget: {'; '.join(failures)}" if failures else None,
        relative_l2=_finite(measured.worst_step[0]),
        final_max_abs=_finite(measured.final_max_abs),
        final_psnr_db=_finite(measured.final_psnr_db),
    )


def time_all(
    candidates: Sequence[Candidate],
    manifest: Manifest,
    opened: Open,
    batches: Sequence[int] | None,
    budget_s: float,
    tell: Tell,
) -> tuple[list[Timings], list[int]]:
    """Timings of each batch size, and the sizes that were left out.

    batches: None is `BATCHES`, as far as any can compute them and calls take less than `LONG_S`: past that, size does
    not change who is fastest.
    """
    timings: list[Timings] = []
    wanted = sorted(set(batches or BATCHES))
    with ExitStack() as stack:
        backends = {one.label: stack.enter_context(opened(one)) for one in candidates}
        for batch in wanted:
            if batches is None and timings and min(timings[-1].ms.values()) > 1e3 * LONG_S:
                break
            tell(f"batch {batch}")
            try:
                timings.append(time_one(backends, feeds_of(manifest, batch), budget_s))
            except BackendError:
                if batches is not None or not timings:
                    raise
                break
    return timings, wanted[len(timings) :]


def time_one(backends: Mapping[str, Backend], feeds: Mapping[str, np.ndarray], budget_s: float) -> Timings:
    """One batch size: a first look at all, then rounds of those that may win; raises BackendError where none can."""
    failed = _failures(backends, feeds)
    calls = [Contender(name, _call(b, feeds)) for name, b in backends.items() if name not in failed]
    if not calls:
        raise BackendError(f"batch {len(feeds['x'])}: no backend can compute it: {'; '.join(failed.values())}")
    look = {name: min(times) for name, times in interleave(calls, FIRST_LOOK).seconds.items()}
    hopeful = [call for call in calls if look[call.name] <= HOPELESS * min(look.values())]
    rounds = interleave(hopeful, Effort(budget_s=budget_s, min_rounds=5, max_rounds=200, max_warmup=10))
    slower = {name: least / min(look.values()) for name, least in look.items() if name not in rounds.seconds}
    return Timings(len(feeds["x"]), rounds.seconds, slower, failed)


def buckets_of(timings: Sequence[Timings]) -> tuple[Bucket, ...]:
    """What is chosen for each batch size, with what it was chosen from."""
    chosen = choose({timing.batch: timing.ratios for timing in timings})
    return tuple(
        Bucket(t.batch, chosen[t.batch], _rounded(t.ms), _rounded(t.ratios), _rounded(t.slower), t.failed)
        for t in timings
    )


def feeds_of(manifest: Manifest, batch: int) -> dict[str, np.ndarray]:
    """Noise, timesteps from all over the schedule, and conditions."""
    t = np.linspace(0, manifest.schedule.T - 1, batch, dtype=np.float32)
    x = initial_noise(0, range(batch), manifest.sample_shape)
    return {"x": x, "t": t, **example_conditions(manifest.conditions, batch)}


def _call(backend: Backend, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
    return lambda: backend.run(feeds)


def _failures(backends: Mapping[str, Backend], feeds: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Why some cannot compute this batch, as where memory does not suffice."""
    failed = {}
    for name, backend in backends.items():
        try:
            wrong = _apart_from_itself(backend, feeds)
        except BackendError as error:
            wrong = one_line(error)
        if wrong:
            failed[name] = wrong
    return failed


def _apart_from_itself(backend: Backend, feeds: Mapping[str, np.ndarray]) -> str:
    """How the first and the last sample of a batch differ from themselves alone, at which parity was judged; or ""."""
    whole = next(iter(backend.run(feeds).values()))
    for k in (0, len(whole) - 1):
        alone = next(iter(backend.run({name: array[k : k + 1] for name, array in feeds.items()}).values()))
        error = relative_l2(whole[k : k + 1], alone)
        if not error <= APART.get(backend.precision, APART_REDUCED):
            return f"sample {k} of the batch is {error:.2g} (relative L2) from itself alone"
    return ""


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {label: round(figure, 4) for label, figure in figures.items()}


def _finite(figure: float) -> float | None:
    return float(figure) if math.isfinite(figure) else None
