"""The samples that an engine holds: in which order they are due, and which worker has them."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from operator import attrgetter

from ddpm_deploy.serve.handle import Handle
from ddpm_deploy.serve.sample import Sample

PACE_MEMORY = 0.9
PATIENCE = 8  # steps of workers that leave a sample to one who has fewer
WAIT_S = (0.1, 60.0)
UNKNOWN_WAIT_S = 1.0

_order = attrgetter("order")


@dataclass(frozen=True)
class Turn:
    """How many samples are due before a request's first, and a guess at the seconds until that takes part."""

    ahead: int
    wait_s: float


class Line:
    """Everything accepted and not finished; not thread-safe, the engine's lock guards it.

    A sample belongs to nobody until a worker first takes it, and to that worker from then on, so that one device draws
    all of a picture. clock: calls of the network per worker so far.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._held: dict[int, Sample] = {}
        self._waiting: list[Sample] = []
        self._own: list[list[Sample]] = [[] for _ in range(workers)]
        self._deadlines: dict[Handle, float] = {}
        self._of: dict[Handle, list[Sample]] = {}
        self._pace = 0.0
        self._passed_by = 0
        self.clock = 0.0

    def __len__(self) -> int:
        return len(self._held)

    @property
    def waiting(self) -> int:
        """How many no worker has taken yet."""
        return len(self._waiting)

    def __contains__(self, sample: Sample) -> bool:
        return sample.number in self._held

    def add(self, samples: Iterable[Sample], handle: Handle, deadline: float | None) -> None:
        """Take a request in. deadline: on the clock that `expired` is asked by."""
        self._of[handle] = list(samples)
        for sample in self._of[handle]:
            self._held[sample.number] = sample
            insort(self._waiting, sample, key=_order)
        if deadline is not None:
            self._deadlines[handle] = deadline

    def candidates(self, worker: int) -> Iterable[Sample]:
        """Those that a worker may take, in the order in which they are due: its own, and so many new ones that it then
        has as many as the others, if these take the rest; or one more, where these do not come for it."""
        own = self._own[worker]
        if not self._waiting:
            return own
        room = -(-len(self._held) // self._workers) - len(own)
        if room <= 0:
            self._passed_by += 1
            room = int(self._passed_by > PATIENCE)
        return heapq.merge(own, self._waiting[:room], key=_order)

    def take(self, worker: int, batch: Iterable[Sample]) -> None:
        """A worker goes on with these."""
        own = self._own[worker]
        new = [sample for sample in batch if sample.stack is None]
        if new:
            self._passed_by = 0
        for sample in new:
            _discard(self._waiting, sample)
            insort(own, sample, key=_order)

    def stepped(self, count: int, seconds: float) -> None:
        """Count a step of so many samples."""
        self.clock += 1 / self._workers
        pace = count * self._workers / max(seconds, 1e-9)
        self._pace = pace if not self._pace else PACE_MEMORY * self._pace + (1 - PACE_MEMORY) * pace

    def remove(self, samples: Iterable[Sample]) -> None:
        """Let go of samples, finished or not."""
        for sample in samples:
            if self._held.pop(sample.number, None) is None:
                continue
            for place in (self._waiting, *self._own):
                _discard(place, sample)
            siblings = self._of[sample.handle]
            siblings.remove(sample)
            if not siblings:
                del self._of[sample.handle]
                self._deadlines.pop(sample.handle, None)

    def left_by(self, worker: int) -> list[Sample]:
        """Go on without a worker; let go of what it had, and name it."""
        self._workers -= 1
        lost = list(self._own[worker])
        self.remove(lost)
        return lost

    def forget(self, handle: Handle) -> None:
        """Let go of a whole request."""
        self.remove(tuple(self._of.get(handle, ())))

    def clear(self) -> list[Handle]:
        """Let go of all requests, and name them."""
        handles = list(self._of)
        for handle in handles:
            self.forget(handle)
        return handles

    def expired(self, now: float) -> list[Handle]:
        """Let go of the requests whose time is over, and name them."""
        late = [handle for handle, deadline in self._deadlines.items() if deadline <= now]
        for handle in late:
            self.forget(handle)
        return late

    def seconds_until_room(self, places: int) -> float:
        """A guess at when so many places will be free, by the pace of late."""
        return self._seconds_until(places, self._held.values())

    def turn(self, handle: Handle, widest: int) -> Turn | None:
        """Where a request stands, of which nothing is under way; None for others. widest: the largest batch."""
        own = self._of.get(handle, [])
        if not own or any(sample.stack is not None for sample in own):
            return None
        ahead = [sample for sample in self._held.values() if _order(sample) < _order(own[0])]
        places = len(ahead) + 1 - widest
        return Turn(len(ahead), self._seconds_until(places, ahead) if places > 0 else 0.0)

    def _seconds_until(self, places: int, among: Collection[Sample]) -> float:
        if not self._pace:
            return UNKNOWN_WAIT_S
        rows = sum(sample.left for sample in among)
        shortest, longest = WAIT_S
        return min(max(rows / self._pace * min(1.0, places / max(1, len(among))), shortest), longest)


def _discard(place: list[Sample], sample: Sample) -> None:
    """Remove it from a sorted list, if it is there."""
    index = bisect_left(place, sample.order, key=_order)
    if index < len(place) and place[index] is sample:
        del place[index]
