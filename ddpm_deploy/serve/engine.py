"""The engine: many requests in, every call of the network shared, each sample out as if it had been alone."""

from __future__ import annotations

import atexit
import itertools
import os
import threading
import time
from collections.abc import Sequence
from typing import Any, Self

from numpy.typing import ArrayLike

from ddpm_deploy.errors import EngineClosed, QueueFull
from ddpm_deploy.job import Conditions
from ddpm_deploy.plan import Plan
from ddpm_deploy.sampler import Sampler
from ddpm_deploy.serve.buckets import Buckets, default_sizes
from ddpm_deploy.serve.handle import Handle
from ddpm_deploy.serve.line import Line, Turn
from ddpm_deploy.serve.observing import Observer
from ddpm_deploy.serve.request import (
    check_plan,
    check_process,
    check_samplers,
    check_streams,
    check_terms,
    is_whole,
    samples_of,
)
from ddpm_deploy.serve.stepper import Stepper
from ddpm_deploy.serve.warming import largest_fitting
from ddpm_deploy.serve.width import useful_batch
from ddpm_deploy.serve.worker import Shared, Worker

CAPACITY = 256


class Engine:
    """Draws the samples of many requests in shared batches; may be used from many threads.

    samplers: one, or one for each device, all of one model; they stay open when the engine is closed. Each has a thread
    and takes from the same line. buckets: the batch sizes that the network is called with; None is every size up to 32
    for ONNX Runtime on a CPU, powers of two for others. capacity: how many samples are held, waiting or under way; each
    needs the memory of its state (1 to 5 images). A request beyond it is refused.
    """

    def __init__(
        self, samplers: Sampler | Sequence[Sampler], *, buckets: Sequence[int] | None = None, capacity: int = CAPACITY
    ) -> None:
        self.samplers = [samplers] if isinstance(samplers, Sampler) else list(samplers)
        check_samplers(self.samplers)
        if not is_whole(capacity) or capacity < 1:
            raise ValueError(f"capacity: got {capacity!r}, expected a whole number of at least 1")
        self.capacity = capacity
        self._pid = os.getpid()
        self._numbers = itertools.count()
        self._shared = Shared(Line(len(self.samplers)), set(range(len(self.samplers))))
        self._line, self._changed = self._shared.line, self._shared.changed
        self._workers = [
            Worker(i, Stepper(s, Buckets(default_sizes(s.backend) if buckets is None else buckets)), self._shared)
            for i, s in enumerate(self.samplers)
        ]
        for worker in self._workers:
            worker.start()
        atexit.register(self.close)

    # -- for callers ----------------------------------------------------------------------------------------------

    def submit(
        self,
        n: int = 1,
        *,
        solver: str | None = None,
        steps: int | None = None,
        spacing: str | None = None,
        plan: Plan | None = None,
        seed: int = 0,
        start: int = 0,
        size: Sequence[int] | None = None,
        condition: Conditions | None = None,
        prompt: str | Sequence[str] | None = None,
        guidance: ArrayLike = 1.0,
        guidance_interval: Sequence[float] | None = None,
        priority: int = 0,
        deadline_s: float | None = None,
        wait_s: float = 0.0,
        preview_every: int = 0,
        **options: Any,
    ) -> Handle:
        """Ask for n samples; the arguments are those of `Sampler.sample`, and so is the result, bit for bit where the
        backend is batch-invariant.

        priority: each step halves the time that the request is allowed to wait, -8 to 8. deadline_s: after so many
        seconds it fails with DeadlineExceeded. wait_s: how long to wait for room, in this thread, before QueueFull.
        preview_every: keep a preview each so many steps, 0 for none. Conditions are encoded here, in this thread.
        Raises ValueError, QueueFull, EngineClosed.
        """
        check_terms(priority, deadline_s, wait_s, preview_every)
        self._check_usable(n)
        if is_whole(n) and not wait_s:
            self.check_room(n)  # before anything is computed for what would be refused
        deadline = None if deadline_s is None else time.monotonic() + deadline_s
        sampler = self.samplers[0]
        chosen_plan = sampler.chosen_plan(plan, solver, steps, spacing, options)
        check_plan(chosen_plan, sampler.manifest)
        chosen_plan.row(0)  # compile its rows here, not in the thread that all wait for
        job = sampler.job(n, chosen_plan, size, None, condition, prompt, guidance, guidance_interval)
        check_streams(seed, start, job.n)
        handle = Handle(job.n, job.shape, preview_every)
        with self._changed:
            self._await_room(job.n, wait_s)
            samples = samples_of(
                job,
                handle,
                sampler.manifest,
                seed=int(seed),
                start=int(start),
                priority=priority,
                clock=self._line.clock,
                widest=self.widest,
                numbers=self._numbers,
            )
            self._line.add(samples, handle, deadline)
            self._changed.notify_all()
        handle.add_done_callback(self._let_go_if_cancelled)
        return handle

    def observe(self, function: Observer) -> None:
        """Call `function(step)` after each step, in the engine's thread: keep it short."""
        self._shared.observers.add(function)

    def check_room(self, n: int = 1) -> None:
        """Raise QueueFull or EngineClosed where `submit` would, were it asked for n samples now; takes microseconds."""
        with self._changed:
            self._await_room(n, 0)

    @property
    def waiting(self) -> int:
        """How many samples have not taken part in any step."""
        return self._line.waiting

    @property
    def held(self) -> int:
        """How many samples are waiting or under way."""
        return len(self._line)

    @property
    def widest(self) -> int:
        """The largest batch that the network is called with, of the first device."""
        return self._workers[0].stepper.buckets.sizes[-1]

    def turn(self, handle: Handle) -> Turn | None:
        """Where a request stands in the line; None once something of it is under way."""
        with self._changed:
            return self._line.turn(handle, self._workers[0].stepper.buckets.limit)

    @property
    def accepting(self) -> bool:
        """Whether requests are taken: false in a drain, after `close`, and when every device has failed."""
        return self._shared.accepting

    @property
    def alive(self) -> bool:
        """Whether some device has not been given up."""
        return bool(self._shared.alive)

    def warmup(self) -> None:
        """Evaluate each sampler at its smallest and its largest batch, or, if there are few, at all of them; then time
        some sizes, and leave out those so large that they make requests wait and gain nothing. Sizes that memory does
        not suffice for are left out too; raises what the smallest fails with.
        """
        for sampler, worker in zip(self.samplers, self._workers, strict=True):
            buckets = worker.stepper.buckets
            buckets.narrow(largest_fitting(buckets.sizes, sampler.warmup))
            buckets.narrow(useful_batch(buckets.sizes, sampler.evaluate_zeros))

    def drain(self, timeout: float | None = None) -> bool:
        """Take no more requests and wait for those accepted; False where `timeout` seconds were not enough."""
        with self._changed:
            self._shared.accepting = False
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not (len(self._line) or self._shared.unsettled), timeout)

    def close(self, timeout: float | None = None) -> None:
        """Stop at the next step: what is not finished fails with EngineClosed. `drain` first to finish it.

        timeout: seconds to wait for the steps under way, None is until they are over.
        """
        if os.getpid() != self._pid:
            return  # a fork has neither the threads nor, for certain, the lock
        with self._changed:
            self._shared.accepting, self._shared.closed = False, True
            unfinished = self._line.clear()
            self._changed.notify_all()
        for handle in unfinished:
            handle.abort(EngineClosed("engine: closed before the request was finished; ask another"))
        until = None if timeout is None else time.monotonic() + timeout
        for worker in self._workers:
            if worker is not threading.current_thread():
                worker.join(None if until is None else max(0.0, until - time.monotonic()))
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Finish what was accepted, or drop it where an error is on its way out."""
        if kind is None:
            self.drain()
        self.close()

    # -- taking requests in ---------------------------------------------------------------------------------------

    def _check_usable(self, n: Any) -> None:
        check_process(self._pid)
        self._check_accepting()
        if is_whole(n) and n > self.capacity:
            raise ValueError(f"n: got {n}, expected at most {self.capacity}, the engine's capacity; ask for fewer")

    def _check_accepting(self) -> None:
        if not self._shared.accepting:
            raise EngineClosed("engine: takes no more requests: it is drained, closed, or all its devices have failed")

    def _await_room(self, n: int, wait_s: float) -> None:
        """Return with room for n samples; the lock is held."""
        self._changed.wait_for(lambda: not self._shared.accepting or len(self._line) + n <= self.capacity, wait_s)
        self._check_accepting()
        missing = len(self._line) + n - self.capacity
        if missing > 0:
            retry_after_s = self._line.seconds_until_room(missing)
            raise QueueFull(
                f"engine: holds {len(self._line)} samples, with {n} more than its capacity of {self.capacity}; "
                f"ask again after {retry_after_s:.1f} s",
                retry_after_s,
            )

    def _let_go_if_cancelled(self, handle: Handle) -> None:
        if handle.cancelled():
            with self._changed:
                self._line.forget(handle)
                self._changed.notify_all()
