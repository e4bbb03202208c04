"""The thread of one device: it waits for samples, takes them through a row, and hands over what is finished."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from ddpm_deploy.errors import BackendError, DeadlineExceeded
from ddpm_deploy.serve.line import Line
from ddpm_deploy.serve.observing import Observers, Step
from ddpm_deploy.serve.policy import chosen
from ddpm_deploy.serve.sample import Sample
from ddpm_deploy.serve.stepper import Stepper

GIVE_UP_AFTER = 3  # calls in a row in which nothing succeeded
logger = logging.getLogger(__name__)


@dataclass
class Shared:
    """What an engine's callers and workers have in common; `changed` guards it, and tells of every change.

    alive: the workers that have not been given up. unsettled: how many samples are finished, but not handed over yet.
    """

    line: Line
    alive: set[int]
    changed: threading.Condition = field(default_factory=threading.Condition)
    observers: Observers = field(default_factory=Observers)
    accepting: bool = True
    closed: bool = False
    unsettled: int = 0


class Worker(threading.Thread):
    """Steps samples on one device until the engine is closed, or the device fails again and again."""

    def __init__(self, number: int, stepper: Stepper, shared: Shared) -> None:
        super().__init__(name=f"engine-{number}", daemon=True)
        self.number, self.stepper = number, stepper
        self._shared, self._line, self._changed = shared, shared.line, shared.changed

    def run(self) -> None:
        """Step until the engine is closed, or the device is given up."""
        try:
            lost = self._work_until_lost()
        except Exception as defect:  # of ours; who waits for this device must not wait for ever
            logger.exception("engine: device %d: an unexpected error", self.number)
            lost = defect
        if lost is not None:
            self._give_up(lost)

    def _work_until_lost(self) -> Exception | None:
        """Step until the engine is closed, or the device fails again and again: with what."""
        failures = 0
        while not self._shared.closed:
            failure = self._step()
            failures = failures + 1 if failure else 0
            if failure and failures >= GIVE_UP_AFTER and not self.stepper.works():
                return failure
        return None

    def _step(self) -> Exception | None:
        """Wait for samples and take them through a row; an error where the device did nothing for any."""
        batch = self._next_batch()
        for sample in batch:
            if sample.stack is None:
                sample.handle.begin(time.monotonic())
        begin = time.perf_counter()
        try:
            errors = self.stepper.advance(batch) if batch else {}
        except Exception as error:  # a defect of ours must not leave callers waiting
            logger.exception("engine: a step failed")
            errors = dict.fromkeys(batch, error)
        seconds = time.perf_counter() - begin
        if batch:
            self._shared.observers.tell(Step(self.number, len(batch), len(errors), seconds, self.stepper.tally))
        self._settle(batch, errors, seconds)
        failed = [error for error in errors.values() if isinstance(error, BackendError | MemoryError)]
        return failed[0] if batch and len(failed) == len(batch) else None

    def _next_batch(self) -> list[Sample]:
        """Wait for samples to advance; none when the engine is closed."""
        while True:
            with self._changed:
                late = self._line.expired(time.monotonic())
                batch: list[Sample] = []
                while not (late or batch or self._shared.closed):
                    batch = chosen(self._line.candidates(self.number), self.stepper.buckets)
                    if not batch:
                        self._changed.wait()
                self._line.take(self.number, batch)
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
            self._shared.unsettled += len(finished)
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
                    self._shared.unsettled -= len(finished)
                    self._changed.notify_all()

    def _give_up(self, error: Exception) -> None:
        """Leave the line to the other devices; after the last of them nothing is accepted any more."""
        logger.error("engine: device %d is given up: %s", self.number, error)
        with self._changed:
            self._shared.alive.discard(self.number)
            self._shared.accepting = self._shared.accepting and bool(self._shared.alive)
            lost = self._line.left_by(self.number)
            waiting = [] if self._shared.alive else self._line.clear()
            self._changed.notify_all()
        for sample in lost:
            sample.handle.settle(sample.index, error)
        for handle in waiting:
            handle.abort(error)
