"""What a caller holds of a request: a future of its samples, and a stream of previews."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Preview:
    """The predicted clean image of one sample after a row. index: of the sample in the result. x0: (*S), its own."""

    index: int
    step: int
    steps: int
    t: float
    x0: Array


@dataclass(frozen=True, eq=False)
class Settled:
    """One sample is drawn, or failed. index: of the sample in the result. outcome: (*S), a view of it, or the error."""

    index: int
    outcome: Array | Exception


News = Preview | Settled


class Handle:
    """The samples of one request, as they come; safe to use from any thread, and to await in an event loop.

    `result()` or `await handle` gives float32 (n, *S), or raises what the first sample failed with, DeadlineExceeded,
    EngineClosed or CancelledError. `async for preview in handle` shows the samples on their way: where the consumer
    is slower than the engine, it gets the newest of each sample; it ends when the request does, without an error.
    `follow` tells of each finished sample too. Both are for one consumer.
    submitted, began, finished: when, on the clock of `time.monotonic`; None for what has not happened.
    """

    def __init__(self, n: int, shape: tuple[int, ...], preview_every: int = 0) -> None:
        self.n, self.shape = n, shape
        self.preview_every = preview_every
        self.submitted = time.monotonic()
        self.began: float | None = None
        self.finished: float | None = None
        self._future: Future[Array] = Future()
        self._images = np.empty((n, *shape), np.float32)
        self._errors: dict[int, Exception] = {}
        self._open = set(range(n))
        self._lock = threading.Lock()
        self._previews: dict[int, Preview] = {}
        self._settled: list[int] = []
        self._listeners: list[Callable[[], None]] = []

    # -- for the caller -------------------------------------------------------------------------------------------

    def result(self, timeout: float | None = None) -> Array:
        """Wait for the samples, (n, *S); TimeoutError after `timeout` seconds, which cancels nothing."""
        return self._future.result(timeout)

    def outcomes(self, timeout: float | None = None) -> list[Array | Exception]:
        """Wait; then each sample, or what it alone failed with."""
        self._future.exception(timeout)
        return [self._errors.get(index, self._images[index]) for index in range(self.n)]

    def error(self) -> BaseException | None:
        """What `result` would raise of a request that is done and was not cancelled."""
        return self._future.exception(0)

    def done(self) -> bool:
        """Whether there is a result, an error, or nothing more to come because it was cancelled."""
        return self._future.done()

    def cancel(self) -> bool:
        """Give the request up; its samples leave the batch at the next step. False if it was done before."""
        return not self._future.done() and self._future.cancel()

    def cancelled(self) -> bool:
        """Whether it was given up by its caller."""
        return self._future.cancelled()

    def add_done_callback(self, function: Callable[[Handle], object]) -> None:
        """Call `function(handle)` once it is done, in the thread that finishes it: keep it short."""
        self._future.add_done_callback(lambda _: function(self))

    def __await__(self) -> Generator[Any, None, Array]:
        """As `result`; cancelling the task that waits cancels the request."""
        return self.in_loop().__await__()

    def in_loop(self) -> asyncio.Future[Array]:
        """A future of the running event loop; cancelling it cancels the request."""
        return asyncio.wrap_future(self._future)

    async def __aiter__(self) -> AsyncIterator[Preview]:
        async for news in self.follow():
            if isinstance(news, Preview):
                yield news

    async def follow(self, idle_s: float | None = None) -> AsyncIterator[News | None]:
        """Previews, and each sample as soon as it is drawn or failed; None after `idle_s` seconds without either."""
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits there
                loop.call_soon_threadsafe(changed.set)

        self._listeners.append(wake)
        self._future.add_done_callback(lambda _: wake())
        try:
            while True:
                done = self.done()
                for news in self._news():
                    yield news
                if done:
                    return
                try:
                    async with asyncio.timeout(idle_s):
                        await changed.wait()
                except TimeoutError:
                    yield None
                changed.clear()
        finally:
            self._listeners.remove(wake)

    # -- for the engine -------------------------------------------------------------------------------------------

    def wants_preview(self, row: int, steps: int) -> bool:
        """Whether the row is one that previews were asked of: every so many, and the last."""
        return self.preview_every > 0 and ((row + 1) % self.preview_every == 0 or row + 1 == steps)

    def show(self, preview: Preview) -> None:
        """Keep a preview in the place of that sample's last one, and wake who waits for it."""
        with self._lock:
            self._previews[preview.index] = preview
        self._wake()

    def begin(self, now: float) -> None:
        """Its first sample takes part in a call of the network."""
        if self.began is None:
            self.began = now

    def settle(self, index: int, outcome: Array | Exception) -> None:
        """One sample is drawn, or failed; after the last of them the request is done."""
        with self._lock:
            if index not in self._open:
                return
            if isinstance(outcome, Exception):
                self._errors[index] = outcome
            else:
                self._images[index] = outcome
            self._open.remove(index)
            self._settled.append(index)
            last = not self._open
        if last:
            self._resolve()
        else:
            self._wake()

    def abort(self, error: Exception) -> None:
        """Fail whatever is not settled yet."""
        with self._lock:
            self._errors.update(dict.fromkeys(self._open, error))
            self._settled += sorted(self._open)
            self._open.clear()
        self._resolve()

    def _resolve(self) -> None:
        self.finished = time.monotonic()
        with suppress(InvalidStateError):  # cancelled, or settled, in the meantime
            if self._errors:
                self._future.set_exception(self._errors[min(self._errors)])
            else:
                self._future.set_result(self._images)

    def _wake(self) -> None:
        for wake in tuple(self._listeners):
            wake()

    def _news(self) -> list[News]:
        with self._lock:
            previews, self._previews = self._previews, {}
            settled, self._settled = self._settled, []
        ends = [Settled(index, self._errors.get(index, self._images[index])) for index in settled]
        return [*previews.values(), *ends]
