"""Several backends behind one: each call goes to the one that was chosen for its batch size."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from ddpm_deploy.backends.base import Backend

NAME = "auto"


class AutoBackend:
    """A Backend that passes each call on, and owns those that it passes them to.

    choices: the backend of each bucket, a batch size; a call goes to the least bucket that holds it, or to the largest.
    details: as in `Backend`; those of the backends are added. threads: the most of any.

    `batch_invariant` holds only where one backend serves all buckets and is itself invariant: two give results that
    differ in the last bits.
    """

    name = NAME

    def __init__(self, choices: Mapping[int, Backend], details: Mapping[str, Any] | None = None) -> None:
        if not choices:
            raise ValueError("choices: got none, expected a backend for at least one batch size")
        self._buckets = sorted(choices)
        self._choices = [choices[bucket] for bucket in self._buckets]
        backends = self.backends
        self.device, self.precision = (
            ", ".join(dict.fromkeys(getattr(backend, name) for backend in backends)) for name in ("device", "precision")
        )
        self.threads = max(backend.threads for backend in backends)
        self.batch_invariant = len(backends) == 1 and backends[0].batch_invariant
        self.inputs, self.outputs = backends[0].inputs, backends[0].outputs
        self.details: Mapping[str, Any] = {
            **(details or {}),
            "backends": [
                {"name": b.name, "precision": b.precision, "threads": b.threads, **b.details} for b in backends
            ],
        }

    @property
    def backends(self) -> list[Backend]:
        """Each backend once, that of the least batch first."""
        return list({id(backend): backend for backend in self._choices}.values())

    def for_batch(self, batch: int) -> Backend:
        """The backend that a call of this batch size goes to."""
        return self._choices[min(bisect_left(self._buckets, batch), len(self._choices) - 1)]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As `Backend.run`; feeds that do not fit are refused by the backend that they go to."""
        first = feeds.get(self.inputs[0].name)
        batch = len(first) if isinstance(first, np.ndarray) and first.ndim else 1
        return self.for_batch(batch).run(feeds)

    def close(self) -> None:
        """Close all of them; calls that are running finish first."""
        for backend in self.backends:
            backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
