"""A set drawn on a Ray cluster, by Ray Data: the same shards, into a folder that all of its machines share."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.data

from ddpm_deploy.bulk.draw import Show, ensure_shard
from ddpm_deploy.bulk.folder import SetFolder
from ddpm_deploy.bulk.order import Order
from ddpm_deploy.bundle import Bundle
from ddpm_deploy.errors import DdpmDeployError
from ddpm_deploy.sampler import Sampler


def draw_set_on_ray(
    bundle: Bundle,
    opening: Mapping[str, Any],
    order: Order,
    folder: Path,
    *,
    part: tuple[int, int] = (1, 1),
    workers: int | None = None,
    show: Show = int,
) -> int:
    """As `draw_set`, by many samplers at once; how many samples were drawn.

    bundle, folder: on paths that every machine of the cluster knows. opening: arguments of `Sampler.load`; each sampler
    takes `threads` CPUs, one by default, and one GPU where its device is one. workers: how many there are at once,
    None is as many as the cluster has room for. Ray that was not started before is started, and stopped again.
    """
    threads = opening.get("threads") or 1
    needs = {"CPU": threads} | ({"GPU": 1} if str(opening.get("device")).startswith("cuda") else {})
    shards, settings = order.part(*part), {**opening, "threads": threads, "digest": bundle.digest}
    with _connected():
        ray.data.DataContext.get_current().enable_progress_bars = False
        room = _room(needs)
        if not shards:
            return 0
        drawn = ray.data.from_items(
            [{"shard": shard} for shard in shards], override_num_blocks=len(shards)
        ).map_batches(
            _Drawer,
            fn_constructor_kwargs={
                "bundle": str(bundle.root.resolve()),
                "opening": settings,
                "order": order,
                "folder": str(folder.resolve()),
            },
            batch_size=1,
            num_cpus=threads,
            num_gpus=needs.get("GPU"),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(workers or room, room, len(shards))),
        )
        return sum(_shown(row, show) for row in _rows(drawn))


class _Drawer:
    """A sampler in a process of its own, opened with the first shard."""

    def __init__(self, bundle: str, opening: Mapping[str, Any], order: Order, folder: str) -> None:
        self._bundle, self._opening, self._order, self._folder = bundle, opening, order, SetFolder(folder)
        self._sampler: Sampler | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Draw one shard: how many samples are in it, how many of them were not there, and what is wrong, if anything.

        Ray would wrap an error in pages of its own and, from another machine, lose its kind.
        """
        shard = int(batch["shard"][0])
        drawn, error = 0, ""
        try:
            if self._sampler is None:
                self._sampler = self._opened()
            drawn = ensure_shard(self._sampler, self._order, self._folder, shard)
        except (DdpmDeployError, ValueError, OSError) as fault:
            error = str(fault)
        return {"samples": [len(self._order.positions(shard))], "drawn": [drawn], "error": [error]}

    def _opened(self) -> Sampler:
        sampler = Sampler.load(self._bundle, **self._opening)
        name, digest = sampler.manifest.model.name, self._opening["digest"]
        self._folder.claim(self._order.identity(name, digest, sampler.backend))
        return sampler


@contextmanager
def _connected() -> Iterator[None]:
    """Connected to the cluster of RAY_ADDRESS, or to one on this machine, which is started if there is none."""
    if ray.is_initialized():
        yield
        return
    ray.init(log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def _room(needs: Mapping[str, int]) -> int:
    """How many samplers the cluster has room for; ValueError for none."""
    has = ray.cluster_resources()
    room = min(int(has.get(name, 0) // amount) for name, amount in needs.items())
    if room < 1:
        need = " and ".join(f"{amount} {name}" for name, amount in needs.items())
        there = " and ".join(f"{has.get(name, 0):g} {name}" for name in needs)
        raise ValueError(f"--ray: a sampler takes {need}, but the cluster has {there}; change --threads or --device")
    return room


def _rows(dataset: Any) -> Iterator[dict[str, Any]]:
    """The rows as they come; raises what a sampler could not do."""
    for row in dataset.iter_rows():
        if row["error"]:
            raise DdpmDeployError(row["error"])
        yield row


def _shown(row: dict[str, Any], show: Show) -> int:
    show(row["samples"])
    return int(row["drawn"])
