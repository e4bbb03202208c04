"""One compiled form of a graph for each batch size that it is called with, within bounds.

A runtime that plans its memory and picks its kernels when it compiles is faster where the batch is known. But each form
takes time to compile and a copy of the weights. So there is a bound, and past it a batch is computed in pieces that
have a form; never by a form for any batch, which may round differently.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

MAX_FORMS = 8
MAX_WEIGHTS_BYTES = 2**30
IDLE_CALLS = 1000

Feeds = Mapping[str, np.ndarray]


class Form(Protocol):
    """A graph, compiled for one batch size; may be called from many threads."""

    def infer(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Evaluate it; the arrays returned share no memory with anything."""


@dataclass
class _Entry:
    """last_call: the number of the last call of just this batch size; use as a piece does not count."""

    form: Form
    last_call: int


class PerBatch:
    """Compiles a form where a batch size is first seen; may be called from many threads, one of which compiles.

    one: the form of batch 1, which stays, so that every size has pieces. compiled: makes another. most: how many are
    kept, at least 2. A size after them is cut into pieces, the largest first, unless some size was not called for
    `IDLE_CALLS` calls and gives its place: sizes that come and go must not be compiled each time. Of four forms and
    more some places are kept for 4, 16 and 64, so that there always are pieces of some size.
    """

    def __init__(self, one: Form, compiled: Callable[[int], Form], most: int = MAX_FORMS) -> None:
        self._compiled = compiled
        self._steps = tuple(4**k for k in range(1, most // 2))
        self._most = most - len(self._steps)
        self._calls = 0
        self._table, self._compiler = threading.Lock(), threading.Lock()
        self._entries = {1: _Entry(one, 0)}

    @property
    def sizes(self) -> list[int]:
        """Those that have a form, the smallest first."""
        with self._table:
            return sorted(self._entries)

    def infer(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Evaluate, the first axis of every input and output being the batch."""
        batch = len(next(iter(feeds.values())))
        parts, begin = [], 0
        for size, form in self._pieces(batch):
            part = slice(begin, begin + size)
            parts.append(form.infer({name: array[part] for name, array in feeds.items()}))
            begin += size
        return parts[0] if len(parts) == 1 else {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}

    def _pieces(self, batch: int) -> list[tuple[int, Form]]:
        with self._table:
            self._calls += 1
            if not self._missing(batch):
                return self._cut(batch)
        with self._compiler:
            with self._table:
                missing = self._missing(batch)  # another thread may have compiled meanwhile
            forms = {size: self._compiled(size) for size in missing}
            with self._table:
                for size, form in forms.items():
                    self._add(size, form)
                return self._cut(batch)

    def _missing(self, batch: int) -> list[int]:
        """What is to be compiled for this batch: itself where there is a place for it, or else the steps up to it."""
        if batch in self._entries:
            return []
        if batch in self._steps or self._has_place():
            return [batch]
        return [size for size in self._steps if size <= batch and size not in self._entries]

    def _cut(self, batch: int) -> list[tuple[int, Form]]:
        if batch in self._entries:
            self._entries[batch].last_call = self._calls
        pieces = []
        for size in sorted(self._entries, reverse=True):
            count, batch = divmod(batch, size)
            pieces += [(size, self._entries[size].form)] * count
        return pieces

    def _has_place(self) -> bool:
        if len(self._exact()) < self._most:
            return True
        return self._calls - self._entries[self._oldest()].last_call > IDLE_CALLS

    def _exact(self) -> set[int]:
        return self._entries.keys() - set(self._steps)

    def _add(self, batch: int, form: Form) -> None:
        if batch not in self._steps and len(self._exact()) >= self._most:
            del self._entries[self._oldest()]
        self._entries[batch] = _Entry(form, self._calls)

    def _oldest(self) -> int:
        return min(self._exact() - {1}, key=lambda size: self._entries[size].last_call)


def affordable(weights_bytes: int) -> int:
    """How many forms may be kept of a graph of that size: one only where two would be too large together."""
    return max(1, min(MAX_FORMS, MAX_WEIGHTS_BYTES // max(1, weights_bytes)))
