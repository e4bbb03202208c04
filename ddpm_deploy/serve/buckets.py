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
    """Batch sizes, and the largest of them that fits into memory now. Used by one thread.

    limit: the largest that may be used; it shrinks where memory runs out, and grows by one bucket again after
    CALM_CALLS calls at the limit.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        if not sizes or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
            raise ValueError(f"buckets: got {list(sizes)}, expected whole numbers of at least 1")
        self.sizes = sorted(set(sizes))
        self._top = len(self.sizes) - 1
        self._calm = 0

    def narrow(self, largest: int) -> None:
        """Leave out the sizes above one of them."""
        self.sizes = [size for size in self.sizes if size <= largest]
        self._top = min(self._top, len(self.sizes) - 1)

    @property
    def limit(self) -> int:
        return self.sizes[self._top]

    def room(self, lanes: int) -> int:
        """How many of so many lanes are worth a call: all in a bucket that they nearly fill, or a smaller one, full."""
        if lanes >= self.limit:
            return self.limit
        above = bisect_left(self.sizes, lanes)
        if above == 0 or lanes >= WORTH_PADDING * self.sizes[above]:
            return self.sizes[above]
        return self.sizes[above - 1]

    def padded(self, lanes: int) -> int:
        """The bucket that so many lanes ride in. lanes: at most `limit`."""
        return self.sizes[bisect_left(self.sizes, lanes)]

    def shrink(self, failed: int) -> None:
        """Use only buckets below the one that memory did not suffice for; the smallest one stays."""
        self._top, self._calm = max(0, bisect_left(self.sizes, failed) - 1), 0

    def succeeded(self, size: int) -> None:
        """Count a call that went well, towards growing again."""
        if self._top == len(self.sizes) - 1 or size < self.limit:
            return
        self._calm += 1
        if self._calm >= CALM_CALLS:
            self._top, self._calm = self._top + 1, 0


def default_sizes(backend: Backend, most: int = MAX_BATCH) -> list[int]:
    """Every size where the runtime takes any as it comes, or else powers of two, which it compiles or captures once."""
    if backend.name in ANY_SIZE and backend.batch_invariant:
        return list(range(1, most + 1))
    return [2**k for k in range(most.bit_length()) if 2**k <= most]
