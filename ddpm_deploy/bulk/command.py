"""`sample --shards`: many samples, in a folder of shards that can be gone on with, shared and verified."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from ddpm_deploy import arguments
from ddpm_deploy.asked import chosen_plan, opening, words_in_turn
from ddpm_deploy.backends.auto import NAME as AUTO
from ddpm_deploy.bulk.draw import Show, draw_set
from ddpm_deploy.bulk.folder import SetFolder
from ddpm_deploy.bulk.order import Order
from ddpm_deploy.bulk.verify import verify_set
from ddpm_deploy.bundle import Bundle, Manifest, default_bundle, read_bundle
from ddpm_deploy.plan import Plan
from ddpm_deploy.sampler import Sampler
from ddpm_deploy.turns import turn_of_rows

if TYPE_CHECKING:
    from tqdm import tqdm


def draw_shards(asked: argparse.Namespace) -> int:
    """Draw what is not there yet of a set, or of a part of it."""
    if asked.backend == AUTO:
        raise ValueError("--backend auto: may take another for each batch; name the one that `tune` recommends")
    if asked.ray_workers is not None and not asked.ray:
        raise ValueError("--ray-workers: means nothing without --ray; give both")
    if asked.ray_workers is not None and asked.ray_workers < 1:
        raise ValueError(f"--ray-workers: got {asked.ray_workers}, expected at least 1")
    bundle = read_bundle(default_bundle() if asked.bundle is None else asked.bundle, digest=asked.digest, verify=False)
    order = _order(asked, chosen_plan(asked, bundle.manifest), bundle.manifest)
    if asked.print_plan:
        print(order.plan, file=sys.stderr if asked.json else sys.stdout)
    mine = order.part(*asked.shard)
    samples, began = order.samples_in(mine), time.perf_counter()
    with _bar(asked, samples, "drawing") as bar:
        drawn = (_drawn_on_ray if asked.ray else _drawn_here)(asked, bundle, order, bar.update)
    seconds = round(time.perf_counter() - began, 3)
    report = {"shards": len(mine), "of": order.shards, "samples": samples, "drawn": drawn, "seconds": seconds}
    _tell(asked, report, "{samples} samples in {shards} of {of} shards, {drawn} of them drawn now, {seconds:.1f} s")
    return 0


def verify_shards(asked: argparse.Namespace) -> int:
    """Tell what a folder of shards lacks; 1 where that is anything."""
    folder = SetFolder(asked.shards)
    with _bar(asked, folder.identity().get("num"), "reading") as bar:
        verdict = verify_set(folder, bar.update)
    report = {"shards": verdict.shards, "samples": verdict.samples, "faults": verdict.faults}
    if verdict.faults and not asked.json:
        print(*verdict.faults, sep="\n")
    wrong = f"{len(verdict.faults)} of {{shards}} shards are to be drawn again, by the command that drew them"
    right = "{samples} samples in {shards} shards, every byte as it was written"
    _tell(asked, report, wrong if verdict.faults else right)
    return int(bool(verdict.faults))


def _drawn_here(asked: argparse.Namespace, bundle: Bundle, order: Order, show: Show) -> int:
    with Sampler.load(bundle, **opening(asked)) as sampler:
        return draw_set(sampler, order, SetFolder(asked.shards), bundle.digest, part=asked.shard, show=show)


def _drawn_on_ray(asked: argparse.Namespace, bundle: Bundle, order: Order, show: Show) -> int:
    try:
        from ddpm_deploy.bulk.on_ray import draw_set_on_ray
    except ModuleNotFoundError as error:
        raise ValueError(f"--ray: {error}; pip install 'ddpm-deploy[distributed]'") from None
    return draw_set_on_ray(
        bundle, opening(asked), order, asked.shards, part=asked.shard, workers=asked.ray_workers, show=show
    )


def _order(asked: argparse.Namespace, plan: Plan, manifest: Manifest) -> Order:
    given = arguments.conditions(asked.condition)
    rows = {name: turn_of_rows(name, array, asked.num, manifest) for name, array in given.items()}
    return Order(
        plan,
        asked.num,
        seed=asked.seed,
        start=asked.start,
        size=asked.size,
        turns={**rows, **words_in_turn(asked, manifest)},
        guidance=asked.guidance,
        guidance_interval=asked.guidance_interval,
        batch_size=asked.batch_size,
        shard_size=asked.shard_size,
        shard_format=asked.shard_format,
    )


def _bar(asked: argparse.Namespace, total: int | None, doing: str) -> tqdm[Any]:
    from tqdm import tqdm

    quiet = asked.json or not sys.stderr.isatty()
    return tqdm(total=total, desc=doing, unit="sample", leave=False, disable=quiet)


def _tell(asked: argparse.Namespace, report: dict[str, Any], sentence: str) -> None:
    report = {"folder": str(asked.shards), **report}
    print(json.dumps(report) if asked.json else f"{asked.shards}: {sentence.format(**report)}")
