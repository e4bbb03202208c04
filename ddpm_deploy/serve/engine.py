"""The engine: many requests in, every call of the network shared, each sample out as if it had been alone."""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import threading
import time
from collections.abc import Sequence
from typing import Any, Self

from numpy.typing import ArrayLike

from ddpm_deploy.errors import BackendError, DeadlineExceeded, EngineClosed, QueueFull
from ddpm_deploy.job import Conditions
from ddpm_deploy.plan import Plan
from ddpm_deploy.sampler import Sampler
from ddpm_deploy.serve.buckets import Buckets, default_sizes
from ddpm_deploy.serve.handle import Handle
from ddpm_deploy.serve.line import Line, Turn
from ddpm_deploy.serve.observing import Observer, Observers, Step
from ddpm_deploy.serve.policy import chosen
from ddpm_deploy.serve.request import (
    check_plan,
    check_process,
    check_samplers,
    check_streams,
    check_terms,
    is_whole,
    samples_of,
)
from ddpm_deploy.serve.sample import Sample
from ddpm_deploy.serve.stepper import Stepper
from ddpm_deploy.serve.warming import largest_fitting
from ddpm_deploy.serve.width import useful_batch

CAPACITY = 256
GIVE_UP_AFTER = 3  # calls in a row in which nothing succeeded
logger = logging.getLogger(__name__)


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
        self._steppers = [
            Stepper(s, Buckets(default_sizes(s.backend) if buckets is None else buckets)) for s in self.samplers
        ]
        self._line = Line(len(self.samplers))
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._accepting, self._closed = True, False
        self._unsettled = 0
        self._observers = Observers()
        self._threads = [
            threading.Thread(target=self._work, args=(i,), name=f"engine-{i}", daemon=True)
            for i in range(len(self.samplers))
        ]
        self._alive = set(range(len(self.samplers)))
        for thread in self._threads:
            thread.start()
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
        self._observers.add(function)

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
        return self._steppers[0].buckets.sizes[-1]

    def turn(self, handle: Handle) -> Turn | None:
        """Where a request stands in the line; None once something of it is under way."""
        with self._changed:
            return self._line.turn(handle, self._steppers[0].buckets.limit)

    @property
    def accepting(self) -> bool:
        """Whether requests are taken: false in a drain, after `close`, and when every device has failed."""
        return self._accepting

    @property
    def alive(self) -> bool:
        """Whether some device has not been given up."""
        return bool(self._alive)

    def warmup(self) -> None:
        """Evaluate each sampler at its smallest and its largest batch, or, if there are few, at all of them; then time
        some sizes, and leave out those so large that they make requests wait and gain nothing. Sizes that memory does
        not suffice for are left out too; raises what the smallest fails with.
        """
        for sampler, stepper in zip(self.samplers, self._steppers, strict=True):
            stepper.buckets.narrow(largest_fitting(stepper.buckets.sizes, sampler.warmup))
            stepper.buckets.narrow(useful_batch(stepper.buckets.sizes, sampler.evaluate_zeros))

    def drain(self, timeout: float | None = None) -> bool:
        """Take no more requests and wait for those accepted; False where `timeout` seconds were not enough."""
        with self._changed:
            self._accepting = False
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not (len(self._line) or self._unsettled), timeout)

    def close(self, timeout: float | None = None) -> None:
        """Stop at the next step: what is not finished fails with EngineClosed. `drain` first to finish it.

        timeout: seconds to wait for the steps under way, None is until they are over.
        """
        if os.getpid() != self._pid:
            return  # a fork has neither the threads nor, for certain, the lock
        with self._changed:
            self._accepting, self._closed = False, True
            unfinished = self._line.clear()
            self._changed.notify_all()
        for handle in unfinished:
            handle.abort(EngineClosed("engine: closed before the request was finished; ask another"))
        until = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(None if until is None else max(0.0, until - time.monotonic()))
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
        if not self._accepting:
            raise EngineClosed("engine: takes no more requests: it is drained, closed, or all its devices have failed")

    def _await_room(self, n: int, wait_s: float) -> None:
        """Return with room for n samples; the lock is held."""
        self._changed.wait_for(lambda: not self._accepting or len(self._line) + n <= self.capacity, wait_s)
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

    # -- the workers ----------------------------------------------------------------------------------------------

    def _work(self, worker: int) -> None:
        try:
            lost = self._work_until_lost(worker)
        except Exception as defect:  # of ours; who waits for this device must not wait for ever
            logger.exception("engine: device %d: an unexpected error", worker)
            lost = defect
        if lost is not None:
            self._give_up(worker, lost)

    def _work_until_lost(self, worker: int) -> Exception | None:
        """Step until the engine is closed, or the device fails again and again: with what."""
        failures = 0
        while not self._closed:
            failure = self._step(worker)
            failures = failures + 1 if failure else 0
            if failure and failures >= GIVE_UP_AFTER and not self._steppers[worker].works():
                return failure
        return None

    def _step(self, worker: int) -> Exception | None:
        """Wait for samples and take them through a row; an error where the device did nothing for any."""
        batch = self._next_batch(worker)
        for sample in batch:
            if sample.stack is None:
                sample.handle.begin(time.monotonic())
        begin = time.perf_counter()
        try:
            errors = self._steppers[worker].advance(batch) if batch else {}
        except Exception as error:  # a defect of ours must not leave callers waiting
            logger.exception("engine: a step failed")
            errors = dict.fromkeys(batch, error)
        seconds = time.perf_counter() - begin
        if batch:
            self._observers.tell(Step(worker, len(batch), len(errors), seconds, self._steppers[worker].tally))
        self._settle(batch, errors, seconds)
        failed = [error for error in errors.values() if isinstance(error, BackendError | MemoryError)]
        return failed[0] if batch and len(failed) == len(batch) else None

    def _next_batch(self, worker: int) -> list[Sample]:
        """Wait for samples to advance; none when the engine is closed."""
        while True:
            with self._changed:
                late = self._line.expired(time.monotonic())
                batch: list[Sample] = []
                while not (late or batch or self._closed):
                    batch = chosen(self._line.candidates(worker), self._steppers[worker].buckets)
                    if not batch:
                        self._changed.wait()
                self._line.take(worker, batch)
                if late:
                    self._changed.notify_all()
            for handle in late:
                handle.abort(DeadlineExceeded("engine: the request was not finished by its deadline; give it longer"))
            if not late:
                return batch

    def _settle(self, batch: Sequence[Sample], errors: dict[Sample, Exception], seconds: float) -> None:
        """Hand over what is finished, and make room."""
        with self._changed:
            self._line.stepped(len(batch), seconds)
            finished = [s for s in batch if (s in errors or not s.left) and s in self._line]
            self._line.remove(finished)
            self._unsettled += len(finished)
            if finished:
                self._changed.notify_all()
        try:
            for sample in finished:
                failure = errors.get(sample)
                sample.handle.settle(sample.index, sample.image if failure is None else failure)
                sample.stack = None
        except Exception as defect:
            for sample in finished:
                sample.handle.settle(sample.index, defect)  # those that are not settled yet
            raise
        finally:
            if finished:
                with self._changed:
                    self._unsettled -= len(finished)
                    self._changed.notify_all()

    def _give_up(self, worker: int, error: Exception) -> None:
        """Leave the line to the other devices; after the last of them nothing is accepted any more."""
        logger.error("engine: device %d is given up: %s", worker, error)
        with self._changed:
            self._alive.discard(worker)
            self._accepting = self._accepting and bool(self._alive)
            lost = self._line.left_by(worker)
            waiting = [] if self._alive else self._line.clear()
            self._changed.notify_all()
        for sample in lost:
            sample.handle.settle(sample.index, error)
        for handle in waiting:
            handle.abort(error)
