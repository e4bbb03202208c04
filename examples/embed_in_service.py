"""The sampler inside a service, without torch: `python examples/embed_in_service.py`.

Two ways to share one sampler: a pool of threads, and asyncio. Both print how many pictures they served, and check
that a request's picture does not depend on what else runs.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ddpm_deploy import Sampler

WORKERS = 2
REQUESTS = 8


def load() -> Sampler:
    """One sampler for the whole process; each call computes on one thread, so the workers do not fight for cores."""
    return Sampler.load(os.environ.get("BUNDLE"), threads=1, warmup=True)


def draw(sampler: Sampler, seed: int) -> np.ndarray:
    """One request: a picture (1, C, H, W) in network range."""
    return sampler.sample(1, solver="unipc", steps=12, seed=seed)


def threaded(sampler: Sampler) -> list[np.ndarray]:
    """Answer all requests from a pool."""
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(lambda seed: draw(sampler, seed), range(REQUESTS)))


async def concurrent(sampler: Sampler) -> list[np.ndarray]:
    """The same under asyncio: the event loop stays free while the runtime computes."""
    free = asyncio.Semaphore(WORKERS)

    async def answer(seed: int) -> np.ndarray:
        async with free:
            return await asyncio.to_thread(draw, sampler, seed)

    return await asyncio.gather(*(answer(seed) for seed in range(REQUESTS)))


def main() -> None:
    with load() as sampler:
        alone = [draw(sampler, seed) for seed in range(REQUESTS)]
        for way, pictures in (("threads", threaded(sampler)), ("asyncio", asyncio.run(concurrent(sampler)))):
            same = all(np.array_equal(a, b) for a, b in zip(alone, pictures, strict=True))
            print(f"{way}: {len(pictures)} pictures, {'the same as alone' if same else 'NOT the same as alone'}")


if __name__ == "__main__":
    main()
