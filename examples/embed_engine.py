"""Many requests through one engine, without torch: `python examples/embed_engine.py`.

Requests of any solver and number of steps share every call of the network. Prints what came of a few dozen, checks that
a request's picture does not depend on what else runs, and follows one of them step by step.
"""

from __future__ import annotations

import asyncio
import os

import numpy as np

from ddpm_deploy import Sampler
from ddpm_deploy.errors import QueueFull
from ddpm_deploy.serve import Engine

REQUESTS = [
    {"solver": solver, "steps": steps, "seed": seed}
    for seed, (solver, steps) in enumerate([("unipc", 12), ("ddim", 4), ("dpmpp_2m", 8), ("ddpm", 30)] * 6)
]


def served(engine: Engine) -> list[np.ndarray]:
    """All at once, waited for in turn: each handle is a future of its pictures (n, C, H, W)."""
    handles = [engine.submit(**request) for request in REQUESTS]
    return [handle.result() for handle in handles]


async def followed(engine: Engine) -> list[int]:
    """One request in an event loop: its steps as they were seen, then the result."""
    handle = engine.submit(solver="ddim", steps=50, preview_every=10, deadline_s=60)
    steps = [preview.step + 1 async for preview in handle]  # preview.x0 is the picture as far as it is known
    await handle
    return steps


def refused(sampler: Sampler) -> float:
    """What an engine says that is full: when to ask again, in seconds."""
    with Engine(sampler, capacity=1) as engine:
        engine.submit(steps=50)
        try:
            engine.submit(steps=50)
        except QueueFull as full:
            return full.retry_after_s
    return 0.0


def main() -> None:
    with Sampler.load(os.environ.get("BUNDLE"), warmup=True) as sampler:
        with Engine(sampler) as engine:
            pictures, steps = served(engine), asyncio.run(followed(engine))
        alone = [sampler.sample(1, **request) for request in REQUESTS]
        same = all(np.array_equal(a, b) for a, b in zip(alone, pictures, strict=True))
        print(f"{len(pictures)} pictures, {'the same as alone' if same else 'NOT the same as alone'}")
        print(f"followed one through step {steps[-1]}")
        print(f"a full engine says: ask again after {refused(sampler):.1f} s")


if __name__ == "__main__":
    main()
