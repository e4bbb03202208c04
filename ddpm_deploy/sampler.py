"""The sampler: a bundle, a backend and a plan make samples."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddpm_deploy.backends import Backend, open_backend
from ddpm_deploy.backends.auto import NAME as AUTO
from ddpm_deploy.backends.auto import AutoBackend
from ddpm_deploy.backends.cuda import Loop
from ddpm_deploy.bundle import Bundle, Manifest, default_bundle, read_bundle
from ddpm_deploy.encoder import PROMPT, Encoder, open_encoder
from ddpm_deploy.guidance import Guidance, checked_guidance, guided, without
from ddpm_deploy.job import (
    Conditions,
    Job,
    Source,
    checked_conditions,
    checked_count,
    checked_shape,
    kept_channels,
    plan_settings,
)
from ddpm_deploy.plan import Denoise, Frame, Noise, Plan
from ddpm_deploy.solvers import make_plan

BATCH_SIZE = 32
MAX_CACHED_PLANS = 64

Array = NDArray[Any]


class Sampler:
    """Draws samples from a bundle through one backend.

    May be called from many threads at once: they share the backend, which is thread-safe, and a cache of plans.
    Samples are in network range, as `x_T` and parity speak of them; `to_user` gives user units.
    """

    def __init__(self, backend: Backend, manifest: Manifest, encoder: Encoder | None = None) -> None:
        self.backend = backend
        self.manifest = manifest
        self.encoder = encoder
        self._plans: dict[Any, Plan] = {}

    @classmethod
    def load(
        cls,
        bundle: str | os.PathLike[str] | Bundle | None = None,
        *,
        backend: str = "onnxruntime",
        precision: str | Sequence[str] = "fp32",
        device: str = "cpu",
        threads: int | None = None,
        digest: str | None = None,
        warmup: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> Self:
        """Open a bundle on a backend.

        bundle: folder, lone ONNX file, or one already read; None is the pretrained digits model of this package, and
        "shapes" its model of coloured shapes, which takes prompts.
        backend: "auto" is the fastest for each batch size, as `tune` has measured it or else is measured now; it takes
        several precisions to choose from, or "any", and any device.
        digest: `"sha256:..."` that the bundle must have, which pins it against tampering. threads: of one call,
        None is every CPU that the process may use. warmup: evaluate once, so that the first request is not slow.
        options: of the backend alone, such as `{"buckets": (1, 8)}` on a GPU; see docs/gpu.md.
        Raises BundleError, BackendUnavailable.
        """
        if isinstance(bundle, Bundle):
            if digest not in (None, bundle.digest):
                raise ValueError(f"digest: got {digest}, but the bundle given has {bundle.digest}")
        else:
            bundle = read_bundle(default_bundle() if bundle is None else bundle, digest=digest, verify=False)
        with ExitStack() as stack:
            opened = _open(backend, bundle, precision, device, threads, options)
            stack.enter_context(opened)
            if isinstance(opened, AutoBackend):
                backend, device = (one := opened.for_batch(1)).name, one.device
            encoder = open_encoder(bundle, backend=backend, device=device, threads=threads)
            sampler = cls(opened, bundle.manifest, encoder)
            stack.callback(sampler.close)
            if warmup:
                sampler.warmup()
            stack.pop_all()
        return sampler

    # -- sampling -------------------------------------------------------------------------------------------------

    def sample(
        self,
        n: int | None = None,
        *,
        solver: str | None = None,
        steps: int | None = None,
        spacing: str | None = None,
        seed: int = 0,
        start: int = 0,
        size: Sequence[int] | None = None,
        x_T: ArrayLike | None = None,
        plan: Plan | None = None,
        noise: Noise = None,
        condition: Conditions | None = None,
        prompt: str | Sequence[str] | None = None,
        guidance: ArrayLike = 1.0,
        guidance_interval: Sequence[float] | None = None,
        batch_size: int = BATCH_SIZE,
        progress: bool = False,
        **options: Any,
    ) -> NDArray[np.float32]:
        """Draw n samples: float32 (n, *S).

        solver, steps, spacing, options: see `plan`; or give a `plan`. seed, start: sample i of the result is sample
        `start + i` of that seed, whatever the batch. size: (H, W) of pictures where the graphs leave it free, None the
        trained one. x_T: (n, *S) instead of the seed's own. noise: (N, n, *S) or broadcastable, or a function of the
        row, instead of the seed's own; a function needs one batch.
        condition: named tensors, (n, ...) or one for all; or, where the bundle has an encoder, what it takes instead.
        One with a null may be left out: the sample is then drawn without it. prompt: what the pictures shall show, in
        words, one text for all or n of them, where the bundle has a tokenizer.
        guidance: the weight w of `m_u + w (m_c - m_u)`, a number or (n,): 1 is the condition as it is.
        guidance_interval: the lowest and the highest timestep at which the weight counts; it is 1 at the others.
        batch_size: how many share a call of the network; twice as many in a row that is guided.
        """
        _check_batch_size(batch_size)
        chosen = self.chosen_plan(plan, solver, steps, spacing, options)
        job = self.job(n, chosen, size, x_T, condition, prompt, guidance, guidance_interval)
        source = Source(job, seed, start, x_T, noise)
        if callable(noise) and job.n > batch_size:
            raise ValueError(f"noise: a function serves one batch; got {job.n} samples in batches of {batch_size}")
        samples = np.empty((job.n, *job.shape), np.float32)
        with _progress_bar(job, batch_size) if progress else nullcontext() as bar:
            for begin in range(0, job.n, batch_size):
                chunk = slice(begin, min(begin + batch_size, job.n))
                for state, rows in self._states(job, source, chunk):
                    samples[chunk] = state
                    if bar is not None:
                        bar.update(rows)
        return samples

    def stream(
        self,
        n: int | None = None,
        *,
        solver: str | None = None,
        steps: int | None = None,
        spacing: str | None = None,
        seed: int = 0,
        start: int = 0,
        size: Sequence[int] | None = None,
        x_T: ArrayLike | None = None,
        plan: Plan | None = None,
        noise: Noise = None,
        condition: Conditions | None = None,
        prompt: str | Sequence[str] | None = None,
        guidance: ArrayLike = 1.0,
        guidance_interval: Sequence[float] | None = None,
        **options: Any,
    ) -> Iterator[Frame]:
        """The frames of one batch as they come, each with the state x and the preview x0; arguments as in `sample`."""
        chosen = self.chosen_plan(plan, solver, steps, spacing, options)
        job = self.job(n, chosen, size, x_T, condition, prompt, guidance, guidance_interval)
        return self._frames(job, Source(job, seed, start, x_T, noise), slice(0, job.n))

    def plan(
        self,
        solver: str | None = None,
        steps: int | None = None,
        spacing: str | None = None,
        timesteps: ArrayLike | None = None,
        **options: Any,
    ) -> Plan:
        """Compile a solver for this model (cached).

        solver: None is the bundle's default, with its steps, spacing and options. steps: None is the bundle's default
        count, or all T for "ddpm". options: the solver's own, or `clip`; "ddpm" takes the model's variance.
        """
        settings = plan_settings(self.manifest, solver, steps, spacing, timesteps, options)
        try:
            key = frozenset(settings.items())
        except TypeError:  # something that cannot be hashed, such as a list of timesteps
            return make_plan(schedule=self.manifest.schedule, **settings)
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= MAX_CACHED_PLANS:
                self._plans.clear()
            plan = self._plans[key] = make_plan(schedule=self.manifest.schedule, **settings)
        return plan

    def job(
        self,
        n: int | None,
        plan: Plan,
        size: Sequence[int] | None = None,
        x_T: ArrayLike | None = None,
        condition: Conditions | None = None,
        prompt: str | Sequence[str] | None = None,
        guidance: ArrayLike = 1.0,
        guidance_interval: Sequence[float] | None = None,
    ) -> Job:
        """The arguments of `sample`, checked, and the conditions encoded: for those that step through the plan."""
        shape = checked_shape(self.manifest, size, x_T)
        n = checked_count(n, x_T, shape)
        given = _with_prompt(condition, prompt)
        if PROMPT in given and self.encoder is None and PROMPT not in [each.name for each in self.manifest.conditions]:
            raise ValueError(f"{PROMPT}: the bundle has no encoder to read it; leave it out")
        weights = checked_guidance(guidance, guidance_interval, self.manifest, bool(given), n)
        if self.encoder is not None and (given or not self.manifest.guided):
            given = self.encoder.conditions(given, n)
        return Job(plan, n, shape, checked_conditions(given, self.manifest.conditions, n), weights)

    def encode(self, raw: Conditions) -> dict[str, NDArray[Any]]:
        """The conditions that the bundle's encoder computes, for `sample` to take as often as they are needed.

        raw: each input of the encoder, (n, ...) or without the batch; the conditions have it if any of these has.
        """
        if self.encoder is None:
            names = ", ".join(condition.name for condition in self.manifest.conditions)
            raise ValueError(f"encode: the bundle has no encoder; its conditions are {names or 'none'}")
        return self.encoder.encode(raw)

    def to_user(self, samples: Array) -> NDArray[np.float32]:
        """From network range to the model's own units, `manifest.output.units`. samples: (n, *S)."""
        rank = len(self.manifest.sample_shape) - 1
        scale, offset = (
            np.asarray(values, np.float32).reshape(-1, *[1] * rank)
            for values in (self.manifest.output.scale, self.manifest.output.offset)
        )
        return np.asarray(samples * scale + offset, np.float32)

    def warmup(self, batch_size: int = 1) -> None:
        """Evaluate the network once on zeros, and the encoder where there is one.

        batch_size: OpenVINO compiles each size when it is first seen, and "auto" may have a backend for each.
        """
        if self.encoder is not None:
            self.encoder.warmup()
        self.evaluate_zeros(batch_size)

    def evaluate_zeros(self, batch_size: int) -> None:
        """Evaluate the network once, and nothing else."""
        manifest = self.manifest
        feeds = {"x": np.zeros((batch_size, *manifest.sample_shape), np.float32), "t": np.zeros(batch_size, np.float32)}
        for condition in manifest.conditions:
            feeds[condition.name] = np.zeros((batch_size, *condition.shape), condition.dtype)
        self.backend.run(feeds)

    def close(self) -> None:
        """Free the backend, and the encoder's."""
        self.backend.close()
        if self.encoder is not None:
            self.encoder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- inside ---------------------------------------------------------------------------------------------------

    def chosen_plan(
        self,
        plan: Plan | None,
        solver: str | None,
        steps: int | None,
        spacing: str | None,
        options: Mapping[str, Any],
    ) -> Plan:
        if plan is None:
            return self.plan(solver, steps, spacing, **options)
        if solver is not None or steps is not None or spacing is not None or options:
            raise ValueError("plan: given together with solver, steps, spacing or options; give one of the two")
        return plan

    def _frames(self, job: Job, source: Source, chunk: slice) -> Iterator[Frame]:
        condition = {name: array[chunk] for name, array in job.condition.items()}
        denoise = self.denoiser(job.plan, condition, None if job.guidance is None else job.guidance.part(chunk))
        return job.plan.frames(denoise, source.initial(chunk), source.noise(chunk))

    def _states(self, job: Job, source: Source, chunk: slice) -> Iterator[tuple[Array, int]]:
        """(the state, how many rows led to it) until there are the samples; a loop on the device shows no others."""
        loop = _loop_of(self.backend, chunk.stop - chunk.start)
        if loop is not None and source.fits(loop):
            yield loop.sample(source.draw(chunk, loop)), job.plan.nfe
            return
        for frame in self._frames(job, source, chunk):
            yield frame.x, 1

    def denoiser(
        self, plan: Plan, condition: Mapping[str, Array] | None = None, guidance: Guidance | None = None
    ) -> Denoise:
        """The network as the plan calls it; drops a learned variance that the plan does not use.

        condition: (B, ...) each, of the dtypes in the manifest. guidance: of these B samples.
        """
        given = condition or {}
        (output,) = (spec.name for spec in self.backend.outputs)
        run = self.backend.run
        channels = kept_channels(self.manifest, plan)

        def evaluate(x: Array, t: Array, condition: Mapping[str, Array]) -> Array:
            return run({"x": x, "t": t, **condition})[output][:, :channels]

        if guidance is None:
            return lambda x, t: evaluate(x, t, given)
        null = without(given, self.manifest.conditions)
        return guided(evaluate, given, null, guidance, self.manifest.sample_shape[0])


def _open(
    name: str,
    bundle: Bundle,
    precision: str | Sequence[str],
    device: str,
    threads: int | None,
    options: Mapping[str, Any] | None,
) -> Backend:
    if name == AUTO and options:
        raise ValueError(f"options: {', '.join(sorted(options))}: of one backend, which {AUTO!r} is not; name it")
    if name == AUTO:
        from ddpm_deploy.tuning import Question, open_auto  # it measures with samplers

        return open_auto(bundle, Question.of(precision, device, threads))
    if not isinstance(precision, str):
        raise ValueError(f"precision: got {list(precision)}, expected one name; several are for backend {AUTO!r}")
    return open_backend(name, bundle, precision=precision, device=device, threads=threads, options=options)


def _loop_of(backend: Backend, batch: int) -> Loop | None:
    """The loop on the device of the backend that serves such a batch, where it has one."""
    serving = backend.for_batch(batch) if isinstance(backend, AutoBackend) else backend
    return getattr(serving, "loop", None)


def _with_prompt(condition: Conditions | None, prompt: str | Sequence[str] | None) -> Conditions:
    given = dict(condition or {})
    if prompt is not None and PROMPT in given:
        raise ValueError(f"{PROMPT}: given twice, also as a condition; give it once")
    return given if prompt is None else {**given, PROMPT: prompt}


def _check_batch_size(batch_size: int) -> None:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size!r}, expected a whole number of at least 1")


def _progress_bar(job: Job, batch_size: int) -> Any:
    from tqdm import tqdm

    batches = -(-job.n // batch_size)
    return tqdm(total=batches * job.plan.nfe, desc=job.plan.solver, unit="step", leave=False)
