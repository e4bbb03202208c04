"""The whole reverse loop on a device: the host uploads a plan's tables and a seed, and downloads samples.

Between the two, a row is: `begin_row` (the row's coefficients, its noise), one evaluation by the runtime, and
`apply_row` or, where the runtime's graph has applied the row itself, `end_row`. Rows are counted on the device, so one
captured graph of `CHUNK` rows serves every stretch of every plan; a plan of no more rows is one graph.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ddpm_deploy.backends.cuda.device import Array, Buffers, Device, OutOfDeviceMemory
from ddpm_deploy.errors import BackendError, NonFiniteError

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # batch sizes; others are padded to the next
CHUNK = 50  # rows of a captured graph; even, so that a state that goes to and fro is back in its first place
LEAST_ROWS = 1000  # that the tables have room for
CONDITION = "condition: "  # before the name of one in the buffers
FINITE = 2**31 - 1  # of `first_bad`, in kernels.c

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Draw:
    """A batch to be drawn.

    tables: float32 `t` (N,), `predict` (N, 2), `clip` (N, 2), `update` (N, K, K+3), and `log_variance` (N, 2) where the
    plan uses a learned variance; with guidance `guided` (N,), 1 in the rows where it counts, else 0. draws: whether any
    row draws noise, which is that of (seed, sample, row).
    samples: the index of each. x_T: (n, *S), or None for the seed's own. condition: (n, ...) each. guidance: float32
    weights (n,), or None for an evaluation by the conditions as they are.
    """

    tables: Mapping[str, NDArray[np.float32]]
    draws: bool
    seed: int
    samples: Sequence[int]
    shape: tuple[int, ...]
    x_T: NDArray[np.float32] | None  # noqa: N815
    condition: Mapping[str, Array]
    guidance: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Key:
    """What buffers and graphs are made for; everything else is data in the buffers."""

    batch: int
    shape: tuple[int, ...]
    state_size: int
    rows: int
    draws: bool
    learned: bool
    given: bool
    guided: bool
    condition: tuple[tuple[str, str, tuple[int, ...]], ...]


class Evaluator(Protocol):
    """A runtime that evaluates the network on buffers of the loop.

    name: of the backend. fuses: whether its graph is a `step`, which applies the row and says what is finite; otherwise
    it gives the network's output and kernels.c applies the row. state_size: K of a step graph, None without one.
    learned: whether the network predicts its variance. weighs: whether its graph takes weights of guidance in every
    evaluation; otherwise it doubles the batch only for a key that is guided.
    """

    name: str
    fuses: bool
    state_size: int | None
    learned: bool
    weighs: bool

    def layout(self, key: Key) -> Mapping[str, tuple[Any, tuple[int, ...]]]:
        """Buffers that it needs beside the loop's own."""

    def prepare(self, buffers: Buffers, key: Key) -> Callable[[int], None]:
        """What enqueues an evaluation. Its argument says where a step graph's state is: 0 for `state`, from which it
        goes to `next_state`, 1 for the way back."""

    def capture(self, device: Device, enqueue: Callable[[], None]) -> Callable[[], None] | None:
        """The graph of what is enqueued, None where it must be enqueued anew each time."""

    def close(self) -> None:
        """Free the runtime."""


class Bucket:
    """The buffers and graphs of one key."""

    def __init__(self, device: Device, evaluator: Evaluator, key: Key) -> None:
        self.key, self._device, self._evaluator = key, device, evaluator
        self.buffers = Buffers(device, {**_layout(key, evaluator), **evaluator.layout(key)})
        self._replays: dict[int, Callable[[], None]] = {}
        self._warm = False
        if "noise" in self.buffers and not key.draws:
            self.buffers.write("noise", np.zeros((key.batch, *key.shape), np.float32))
        try:
            self._evaluate = evaluator.prepare(self.buffers, key)
        except BaseException:
            self.buffers.free()
            raise

    def run(self, draw: Draw) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Samples (n, *S), and of each the first row whose output was not finite, `FINITE` without one."""
        device, n = self._device, len(draw.samples)
        self._fill(draw)
        with device.active():
            self._warm_up()
            self._start()
            full, rest = divmod(len(draw.tables["t"]), CHUNK)
            for rows in (*[CHUNK] * full, *([rest] if rest else [])):
                self._replay(rows)()
            self._finish(odd=rest % 2 == 1)
            return self.buffers.read("samples")[:n], self.buffers.read("first_bad")[:n]

    def free(self) -> None:
        """Give the memory back; the graphs are worthless from then on."""
        self._replays.clear()
        self.buffers.free()

    def _warm_up(self) -> None:
        """Let the runtime allocate what it needs, before anything is captured."""
        if not self._warm:
            self._start()
            self._rows(2)
            self._device.synchronize()
            self._warm = True

    def _fill(self, draw: Draw) -> None:
        write, batch = self.buffers.write, self.key.batch
        for name, table in draw.tables.items():
            write(name, table)
        write("seeds", np.full(batch, draw.seed, np.uint64))
        write("samples_index", _padded(np.asarray(draw.samples, np.uint64), batch))
        if draw.x_T is not None:
            write("x_T", _padded(draw.x_T, batch))
        if draw.guidance is not None:
            write("guidance", _padded(draw.guidance, batch))
        for name, array in draw.condition.items():
            write(CONDITION + name, _padded(array, batch))

    def _replay(self, rows: int) -> Callable[[], None]:
        if rows not in self._replays:
            graph = self._evaluator.capture(self._device, lambda: self._rows(rows))
            if graph is not None:  # capturing has enqueued nothing
                self._replays[rows] = graph
            else:
                self._replays[rows] = lambda: self._rows(rows)
        return self._replays[rows]

    def _rows(self, rows: int) -> None:
        for i in range(rows):
            self._begin_row()
            self._evaluate(i % 2)
            self._end_row()

    def _start(self) -> None:
        key, at = self.key, self.buffers.address
        self._device.launch(
            "ddpm_start", key.batch * -(-self._numbers // 8), at("state"), at("x_T"), at("seeds"), at("samples_index"),
            at("counter"), at("first_bad"), key.batch, self._numbers, key.state_size, *self._strides,
        )  # fmt: skip

    def _begin_row(self) -> None:
        key, at = self.key, self.buffers.address
        width = key.state_size * (key.state_size + 3)
        work = key.batch * max(width, -(-self._numbers // 8) if "noise" in self.buffers else 0)
        names = ("t", "predict", "clip", "update", "log_variance")
        self._device.launch(
            "ddpm_begin_row", work, at("counter"), *map(at, names), *(at(f"row_{name}") for name in names),
            at("guided"), at("guidance"), at("row_guidance"), at("noise") if key.draws else None, at("seeds"),
            at("samples_index"), key.batch, self._numbers, key.state_size,
        )  # fmt: skip

    def _end_row(self) -> None:
        key, at = self.key, self.buffers.address
        if self._evaluator.fuses:
            self._device.launch("ddpm_end_row", key.batch, at("counter"), at("finite"), at("first_bad"), key.batch)
            return
        m_stride = self._numbers * (2 if self._evaluator.learned else 1)
        tables = map(at, ("predict", "clip", "update", "log_variance"))
        self._device.launch(
            "ddpm_apply_row", key.batch * self._numbers, at("counter"), at("state"), at("prediction"),
            at("noise") if key.draws else None, None, *tables, at("first_bad"), key.batch, self._numbers,
            key.state_size, *self._strides, m_stride, int(key.learned),
        )  # fmt: skip

    def _finish(self, *, odd: bool) -> None:
        state = "next_state" if odd and self._evaluator.fuses else "state"
        at, (stride, _) = self.buffers.address, self._strides
        self._device.launch("ddpm_finish", self.key.batch * self._numbers, at("samples"), at(state), self.key.batch,
                            self._numbers, stride)  # fmt: skip

    @property
    def _numbers(self) -> int:
        return int(np.prod(self.key.shape))

    @property
    def _strides(self) -> tuple[int, int]:
        """From a sample of the state to the next, and from an image: (B, K, *S) in a step graph, else (K, B, *S)."""
        n, key = self._numbers, self.key
        return (key.state_size * n, n) if self._evaluator.fuses else (n, key.batch * n)


class Loop:
    """Draws samples on a device through one runtime; threads take turns.

    buckets: batch sizes that graphs are made for. Where the device has too little memory for one, it is given up and
    larger batches are drawn in smaller pieces.
    """

    def __init__(self, device: Device, evaluator: Evaluator, buckets: Sequence[int] = BUCKETS) -> None:
        self.device, self.evaluator = device, evaluator
        self._sizes = sorted(set(buckets))
        self._buckets: dict[Key, Bucket] = {}
        self._lock = Lock()

    @property
    def buckets(self) -> tuple[int, ...]:
        """The batch sizes that are known to fit or have not been tried."""
        return tuple(self._sizes)

    def sample(self, draw: Draw) -> NDArray[np.float32]:
        """Samples (n, *S); NonFiniteError where the network's output was not finite, BackendError without memory."""
        out = np.empty((len(draw.samples), *draw.shape), np.float32)
        with self._lock:
            begin = 0
            while begin < len(out):
                chunk = slice(begin, min(begin + self._sizes[-1], len(out)))
                key = _key(draw, self._size(chunk.stop - begin), self.evaluator)
                try:
                    samples, first_bad = self._bucket(key).run(_part(draw, chunk))
                except OutOfDeviceMemory as error:
                    if not self._free(besides=key):
                        self._give_up(key.batch, error)
                    continue
                _require_finite(first_bad, draw, begin)
                out[chunk] = samples
                begin = chunk.stop
        return out

    def close(self) -> None:
        """Free all buffers, the runtime and the device."""
        with self._lock:
            self._free()
            self.evaluator.close()
            self.device.close()

    def _size(self, count: int) -> int:
        return next(size for size in self._sizes if size >= count)

    def _bucket(self, key: Key) -> Bucket:
        if key not in self._buckets:
            self._buckets[key] = Bucket(self.device, self.evaluator, key)
        return self._buckets[key]

    def _free(self, besides: Key | None = None) -> bool:
        """Free every bucket; whether there were others than that of the key, so that it may fit now."""
        others = any(key != besides for key in self._buckets)
        for bucket in self._buckets.values():
            bucket.free()
        self._buckets.clear()
        return others

    def _give_up(self, size: int, error: OutOfDeviceMemory) -> None:
        """Draw in smaller batches than that from now on."""
        self._sizes = [smaller for smaller in self._sizes if smaller < size]
        where = f"{self.evaluator.name}: {self.device.kind}:{self.device.index}"
        if not self._sizes:
            raise BackendError(
                f"{where}: out of memory: not even a batch of {size} fits; free memory on the device, or use a lower "
                "precision"
            ) from error
        logger.warning("%s: out of memory at batch %d; %d at a time from now on", where, size, self._sizes[-1])


def _layout(key: Key, evaluator: Evaluator) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """The loop's own buffers."""
    B, K, N, image = key.batch, key.state_size, key.rows, (key.batch, *key.shape)
    state = (B, K, *key.shape) if evaluator.fuses else (K, *image)
    layout: dict[str, tuple[Any, tuple[int, ...]]] = {
        "t": (np.float32, (N,)), "predict": (np.float32, (N, 2)), "clip": (np.float32, (N, 2)),
        "update": (np.float32, (N, K, K + 3)), "row_t": (np.float32, (B,)),
        "seeds": (np.uint64, (B,)), "samples_index": (np.uint64, (B,)),
        "counter": (np.int32, (2,)), "first_bad": (np.int32, (B,)),
        "state": (np.float32, state), "samples": (np.float32, image),
    }  # fmt: skip
    if key.learned:
        layout["log_variance"] = (np.float32, (N, 2))
    if key.given:
        layout["x_T"] = (np.float32, image)
    if key.guided:
        layout |= {"guided": (np.float32, (N,)), "guidance": (np.float32, (B,)), "row_guidance": (np.float32, (B,))}
    if key.draws or evaluator.fuses:
        layout["noise"] = (np.float32, image)
    if evaluator.fuses:
        layout |= {"next_state": (np.float32, state), "x0": (np.float32, image), "finite": (np.float32, (B,)),
                   "row_predict": (np.float32, (B, 2)), "row_clip": (np.float32, (B, 2)),
                   "row_update": (np.float32, (B, K, K + 3))}  # fmt: skip
        if evaluator.learned:
            layout["row_log_variance"] = (np.float32, (B, 2))
    return layout | {CONDITION + name: (dtype, (B, *shape)) for name, dtype, shape in key.condition}


def _key(draw: Draw, size: int, evaluator: Evaluator) -> Key:
    rows = LEAST_ROWS
    while rows < len(draw.tables["t"]):
        rows *= 2
    return Key(
        batch=size,
        shape=draw.shape,
        state_size=draw.tables["update"].shape[1],
        rows=rows,
        draws=draw.draws,
        learned="log_variance" in draw.tables,
        given=draw.x_T is not None,
        guided=draw.guidance is not None,
        condition=tuple((name, str(array.dtype), array.shape[1:]) for name, array in sorted(draw.condition.items())),
    )


def _part(draw: Draw, chunk: slice) -> Draw:
    return Draw(
        tables=draw.tables,
        draws=draw.draws,
        seed=draw.seed,
        samples=draw.samples[chunk],
        shape=draw.shape,
        x_T=None if draw.x_T is None else draw.x_T[chunk],
        condition={name: array[chunk] for name, array in draw.condition.items()},
        guidance=None if draw.guidance is None else draw.guidance[chunk],
    )


def _padded(array: Array, batch: int) -> Array:
    """Up to the size of the bucket, by copies of the first."""
    missing = batch - len(array)
    return np.concatenate([array, np.repeat(array[:1], missing, axis=0)]) if missing else array


def _require_finite(first_bad: NDArray[np.int32], draw: Draw, begin: int) -> None:
    if (first_bad == FINITE).all():
        return
    row = int(first_bad.min())
    samples = (np.flatnonzero(first_bad == row) + begin).tolist()
    raise NonFiniteError(
        f"row {row} (t = {draw.tables['t'][row]:g}): the network's output is not finite for samples {samples}"
    )
