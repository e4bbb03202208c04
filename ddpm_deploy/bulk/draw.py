"""Drawing a set, or one worker's part of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ddpm_deploy.bulk.files import FORMATS, Drawn
from ddpm_deploy.bulk.folder import SetFolder
from ddpm_deploy.bulk.order import Order
from ddpm_deploy.images import NETWORK_RANGE
from ddpm_deploy.labels import NONE, labelled
from ddpm_deploy.sampler import Sampler
from ddpm_deploy.turns import taken

Show = Callable[[int], object]


def draw_set(
    sampler: Sampler, order: Order, folder: SetFolder, digest: str, *, part: tuple[int, int] = (1, 1), show: Show = int
) -> int:
    """Draw those shards of the set that are not there yet; how many samples that were.

    digest: of the sampler's bundle. part: (i, n), the i-th of n workers. show: told how many samples have become
    ready, those found there too. Raises ShardError where the folder holds another set.
    """
    folder.claim(order.identity(sampler.manifest.model.name, digest, sampler.backend))
    return sum(ensure_shard(sampler, order, folder, shard, show) for shard in order.part(*part))


def ensure_shard(sampler: Sampler, order: Order, folder: SetFolder, shard: int, show: Show = int) -> int:
    """Draw a shard of a claimed folder unless it is there, every byte of it; how many samples were drawn."""
    positions = order.positions(shard)
    file, start = folder.shard(shard, order.shard_format), order.start + positions.start
    if folder.fault(file, start, len(positions)) is None:
        show(len(positions))
        return 0
    with folder.writing(file, start, len(positions)) as stream:
        drawn = _drawn(sampler, order, positions, show)
        FORMATS[order.shard_format](stream, drawn, sampler.manifest.clip or NETWORK_RANGE)
    return len(positions)


def _drawn(sampler: Sampler, order: Order, positions: range, show: Show) -> Iterator[Drawn]:
    """The samples of a shard, drawn batch by batch as they are written."""
    for begin in positions[:: order.batch_size]:
        batch = range(begin, min(begin + order.batch_size, positions.stop))
        samples = sampler.sample(
            len(batch),
            plan=order.plan,
            seed=order.seed,
            start=order.start + begin,
            size=order.size,
            condition=taken(order.turns, batch),
            guidance=order.guidance,
            guidance_interval=order.guidance_interval,
            batch_size=order.batch_size,
        )
        for position, sample in zip(batch, samples, strict=True):
            yield Drawn(order.start + position, order.seed, sample, _conditions(sampler, order, position))
        show(len(batch))


def _conditions(sampler: Sampler, order: Order, position: int) -> dict[str, Any]:
    """What a sample is drawn with, and the name of its class."""
    values = {name: turn[position % len(turn)] for name, turn in order.turns.items()}
    condition = labelled(sampler.manifest)
    if condition is None or condition.name not in values:
        return values
    classes, number = condition.classes or (), int(values[condition.name])
    return {"class": classes[number] if number < len(classes) else NONE, **values}
