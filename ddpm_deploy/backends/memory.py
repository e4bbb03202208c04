"""Runtimes that run out of memory, told by their words, as each has errors of its own."""

from __future__ import annotations

import re

# The words of torch, ONNX Runtime, C++ (OpenVINO), numpy and CUDA.
OUT_OF_MEMORY = re.compile(
    "out of memory|not enough memory|too little memory|allocate memory|bad.?alloc|unable to allocate|OUT_OF_MEMORY",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch may succeed."""
    return isinstance(error, MemoryError) or bool(OUT_OF_MEMORY.search(str(error)))


def way_out(batch: int, fitted: int) -> str:
    """What to do about a batch that did not fit. fitted: the largest that did, 0 where none has run."""
    if batch <= 1:
        return "not even one sample fits: free memory, or use a lower precision"
    before = f", and one of {fitted} did" if 0 < fitted < batch else ""
    return f"a batch of {batch} does not fit{before}: draw fewer at a time (batch_size); guided samples count twice"
