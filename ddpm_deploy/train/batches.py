"""Batches and random numbers as pure functions of (seed, step), so that nothing but the step needs saving."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from ddpm_deploy.errors import TrainingError

Batch = tuple[Tensor, dict[str, Tensor]]


def stream_seed(*parts: int | str) -> int:
    """A 63-bit seed for the named stream of random numbers, such as `(seed, "noise", step)`."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def batch_indices(seed: int, step: int, batch_size: int, size: int) -> list[int]:
    """Indices of batch `step`: the data set in a fresh order every epoch, with no sample left out between epochs."""
    first, last = step * batch_size, (step + 1) * batch_size
    epochs = range(first // size, -(-last // size))
    parts = [_epoch_order(seed, epoch, size)[max(0, first - epoch * size) : last - epoch * size] for epoch in epochs]
    indices: list[int] = torch.cat(parts).tolist()
    return indices


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, size: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(stream_seed(seed, "order", epoch)))


class Batches(Dataset[Batch]):
    """Item `step` is this process's share of batch `step`, collated.

    A sample of the data set is x, or (x, condition) with a dict of named tensors. A data set with `__getitems__`
    may return the whole share at once as a tensor. torch's random numbers are seeded before the samples are taken,
    so random transforms repeat on resume.
    """

    def __init__(self, dataset: Any, batch_size: int, seed: int, rank: int = 0, processes: int = 1) -> None:
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.rank, self.processes = rank, processes

    def __getitem__(self, step: int) -> Batch:
        share = self.batch_size // self.processes
        indices = batch_indices(self.seed, step, self.batch_size, len(self.dataset))
        torch.default_generator.manual_seed(stream_seed(self.seed, "samples", step, self.rank))
        return as_batch(_take(self.dataset, indices[self.rank * share : (self.rank + 1) * share]))

    def first(self, count: int) -> Batch:
        """The first `count` samples of the data set, over again where it has fewer."""
        return as_batch(_take(self.dataset, [i % len(self.dataset) for i in range(count)]))

    def loader(self, first: int, last: int, workers: int) -> Iterator[Batch]:
        """Batches `first` to `last - 1` in order, fetched ahead by `workers` processes."""
        generator = torch.Generator().manual_seed(0)  # or the loader draws its own seed from the global state
        pin = torch.cuda.is_available()
        loader = DataLoader(
            _Attempts(self),
            batch_size=None,
            sampler=range(first, last),
            num_workers=workers,
            pin_memory=pin,
            generator=generator,
            worker_init_fn=_leave_signals_to_main,
        )
        for item in loader:
            if isinstance(item, TrainingError):
                raise item
            yield item


class _Attempts(Dataset[Batch | TrainingError]):
    """Gives a TrainingError instead of raising it: torch would put a worker's whole traceback into its message."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __getitem__(self, step: int) -> Batch | TrainingError:
        try:
            return self.batches[step]
        except TrainingError as error:
            return error


def as_batch(items: Any) -> Batch:
    """Split what a data set gave into x, float32, and its condition."""
    if isinstance(items, Tensor):
        return items.float(), {}
    if isinstance(items, list | tuple) and len(items) == 2 and isinstance(items[1], Mapping):
        return items[0].float(), dict(items[1])
    raise ValueError(f"dataset: got samples of type {type(items).__name__}, expected x, or (x, dict of conditions)")


def _leave_signals_to_main(worker: int) -> None:
    """A terminal or a scheduler signals the whole group; the main process then still needs the batches under way."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _take(dataset: Any, indices: list[int]) -> Any:
    if hasattr(dataset, "__getitems__"):
        items = dataset.__getitems__(indices)
        return default_collate(items) if isinstance(items, list) else items
    return default_collate([dataset[index] for index in indices])
