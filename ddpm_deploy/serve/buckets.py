"""The batch sizes that the network is called with."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from ddpm_deploy.backends import Backend

MAX_BATCH = 32
ANY_SIZE = ("onnxruntime",)  # on a CPU: a batch of any size costs what it computes
WORTH_PADDING = 0.75
CALM_CALLS = 1000


class Buckets:
    """Batch sizes, and the largest of them that fits into memory now. Any thread may read them: both are one value.

    limit: the largest that may be used; it shrinks where memory runs out, and grows by one bucket again after
    CALM_CALLS calls at the limit.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        if not sizes or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
            raise ValueError(f"buckets: got {list(sizes)}, expected whole numbers of at least 1")
        self._fit = tuple(sorted(set(sizes))), len(set(sizes)) - 1
        self._calm = 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """All of them, ascending."""
        return self._fit[0]

    @property
    def limit(self) -> int:
        sizes, top = self._fit
        return sizes[top]

    def narrow(self, largest: int) -> None:
        """Leave out the sizes above one of them."""
        sizes, top = self._fit
        kept = tuple(size for size in sizes if size <= largest)
        self._fit = kept, min(top, len(kept) - 1)

    def room(self, lanes: int) -> int:
        """How many of so many lanes are worth a call: all in a bucket that they nearly fill, or a smaller one, full."""
        sizes, top = self._fit
        if lanes >= sizes[top]:
            return sizes[top]
        above = bisect_left(sizes, lanes)
        if above == 0 or lanes >= WORTH_PADDING * sizes[above]:
            return sizes[above]
        return sizes[above - 1]

    def padded(self, lanes: int) -> int:
        """The bucket that so many lanes ride in; they themselves, where none is so large any more."""
        sizes, _ = self._fit
        return next((size for size in sizes[bisect_left(sizes, lanes) :]), lanes)

    def shrink(self, failed: int) -> None:
        """Use only buckets below the one that memory did not suffice for; the smallest one stays."""
        sizes, _ = self._fit
        self._fit, self._calm = (sizes, max(0, bisect_left(sizes, failed) - 1)), 0

    def succeeded(self, size: int) -> None:
        """Count a call that went well, towards growing again."""
        sizes, top = self._fit
        if top == len(sizes) - 1 or size < sizes[top]:
            return
        self._calm += 1
        if self._calm >= CALM_CALLS:
            self._fit, self._calm = (sizes, top + 1), 0


def default_sizes(backend: Backend, most: int = MAX_BATCH) -> list[int]:
    """Every size where the runtime takes any as it comes, or else powers of two, which it compiles or captures once."""
    if backend.name in ANY_SIZE and backend.batch_invariant:
        return list(range(1, most + 1))
    return [2**k for k in range(most.bit_length()) if 2**k <= most]
