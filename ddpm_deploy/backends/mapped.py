"""Large weights in a private file beside their graph, for a runtime that maps files.

Of a graph in memory a runtime holds the bytes, its parsed copy and the weights in the layout of its kernels, all at the
same time. Weights in a file it maps one by one while it lays them out, so that only the last of these remains. The file
is a copy for this one loading: the bundle's own may be changed by others after its hash was checked.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from ddpm_deploy.backends.external import (
    ENTRIES,
    EXTERNAL,
    OWN_TENSORS,
    TENSOR_DATA_LOCATION,
    TENSOR_EXTERNAL_DATA,
    TENSOR_RAW_DATA,
    Pieces,
)
from ddpm_deploy.protobuf import header, spans, text, varint_field

WORTHWHILE_BYTES = 32 * 2**20  # of a graph
LARGE_BYTES = 2**16  # of a tensor
PAGE_BYTES = 4096
GRAPH, WEIGHTS = "graph.onnx", "weights"

_log = logging.getLogger(__name__)


@contextmanager
def spilled(model: bytes) -> Iterator[bytes | Path]:
    """The graph as a file in a folder of its own, with its large weights beside it; whatever is small, or cannot be
    written, as it came. The folder lasts as long as the context. Keep no other reference to `model`: that is the gain.
    """
    with ExitStack() as closing:
        path = _laid_out(model, closing) if len(model) >= WORTHWHILE_BYTES else None
        kept = model if path is None else path
        del model
        yield kept


def _laid_out(model: bytes, closing: ExitStack) -> Path | None:
    """Where the graph lies; None where it cannot be written, as on a disk that is full."""
    try:
        folder = TemporaryDirectory(prefix="ddpm-deploy-", ignore_cleanup_errors=True)
        path = Path(closing.enter_context(folder)) / GRAPH
        with open(path.with_name(WEIGHTS), "xb") as weights:
            path.write_bytes(b"".join(_split(memoryview(model), "model", weights)))
    except OSError as error:
        _log.warning("weights cannot be laid out in a file, so loading takes more memory: %s", error)
        return None
    return path


def _split(message: memoryview, kind: str, weights: BinaryIO) -> Pieces:
    """The message in pieces to be joined; large tensors of the main graph are written to `weights`."""
    if kind == "tensor":
        return _split_tensor(message, weights)
    pieces: Pieces = []
    for number, value, span in spans(message):
        child = OWN_TENSORS[kind].get(number)
        if child is None or not isinstance(value, memoryview):
            pieces.append(span)
        else:
            inner = _split(value, child, weights)
            pieces += [header(number, sum(map(len, inner))), *inner]
    return pieces


def _split_tensor(message: memoryview, weights: BinaryIO) -> Pieces:
    values = [value for number, value, _ in spans(message) if number == TENSOR_RAW_DATA]
    if len(values) != 1 or not isinstance(values[0], memoryview) or len(values[0]) < LARGE_BYTES:
        return [message]
    weights.write(bytes(-weights.tell() % PAGE_BYTES))
    offset = weights.tell()
    weights.write(values[0])
    entries = zip(ENTRIES, (WEIGHTS, str(offset), str(len(values[0]))), strict=True)
    kept: Pieces = [span for number, _, span in spans(message) if number != TENSOR_RAW_DATA]
    for key, value in entries:
        entry = text(1, key) + text(2, value)
        kept += [header(TENSOR_EXTERNAL_DATA, len(entry)), entry]
    return [*kept, varint_field(TENSOR_DATA_LOCATION, EXTERNAL)]
