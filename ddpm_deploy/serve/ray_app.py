"""The service on Ray Serve: an engine in each replica, and as many replicas as there is work for.

`serve run ddpm_deploy.serve.ray_app:build bundle=/models/digits threads=4`; docs/cluster.md has more.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig

from ddpm_deploy.cli import words
from ddpm_deploy.serve.app import make_app
from ddpm_deploy.serve.engine import CAPACITY, Engine
from ddpm_deploy.serve.handle import Array
from ddpm_deploy.serve.limits import Limits
from ddpm_deploy.serve.loading import load_samplers, token_of

TARGET_REQUESTS = 16.0  # of a replica, half of the largest batch: from there on another one draws faster


def _autoscaling() -> AutoscalingConfig:
    return AutoscalingConfig(min_replicas=1, max_replicas=4, target_ongoing_requests=TARGET_REQUESTS)


class Settings(BaseModel):
    """What is served, and how; most are the flags of `python -m ddpm_deploy.serve`.

    bundle: on a path that every machine of the cluster knows. threads: CPUs of a replica. A replica on a CUDA device
    has a GPU to itself, which it knows as cuda:0. autoscaling: as Ray Serve has it. drain_s: how long a replica that
    is no longer wanted may take to finish what it accepted.
    """

    model_config = ConfigDict(extra="forbid")

    bundle: str | None = None
    backend: str = "onnxruntime"
    precision: str = "fp32"
    device: str = "cpu"
    threads: int = Field(1, ge=1)
    streams: int | None = Field(None, ge=1)
    digest: str | None = None
    buckets: list[int] | None = None
    capacity: int = Field(CAPACITY, ge=1)
    max_n: int = Limits.max_n
    max_steps: int = Limits.max_steps
    max_pixels: int | None = Limits.max_pixels
    max_work: int = Limits.max_work
    deadline_s: float = Limits.deadline_s
    drain_s: float = Field(30.0, gt=0)
    autoscaling: AutoscalingConfig = Field(default_factory=_autoscaling)

    @property
    def limits(self) -> Limits:
        """ValueError for those that make no sense."""
        return Limits(
            max_n=self.max_n,
            max_steps=self.max_steps,
            max_pixels=self.max_pixels,
            max_work=self.max_work,
            deadline_s=self.deadline_s,
        )


@serve.ingress()
class Pictures:
    """One replica: a sampler, its engine, and the HTTP service in front of them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        with ExitStack() as stack:
            samplers = load_samplers(
                stack,
                settings.bundle,
                backend=settings.backend,
                precision=settings.precision,
                device=settings.device,
                threads=settings.threads,
                streams=settings.streams,
                digest=settings.digest,
            )
            self._engine = Engine(samplers, buckets=settings.buckets, capacity=settings.capacity)
            stack.callback(self._engine.close)
            self._engine.warmup()
            self._open = stack.pop_all()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The same routes as `python -m ddpm_deploy.serve` has."""
        return make_app(self._engine, self._settings.limits, token_of(os.environ), warm=True)

    async def draw(self, **request: Any) -> Array:
        """For handles within the cluster: the arguments of `Engine.submit`, the samples (n, *S)."""
        handle = await asyncio.to_thread(self._engine.submit, **request)
        return await handle

    def check_health(self) -> None:
        """Ray replaces a replica for which this raises."""
        if not self._engine.alive:
            raise RuntimeError("every device of this replica has failed")

    def __del__(self) -> None:
        if hasattr(self, "_open"):  # not where it could not be made
            self._open.close()


def build(settings: Settings) -> Application:
    """The application, for `serve run`, a configuration file of Serve, or `serve.run(build(Settings(...)))`."""
    settings.limits  # noqa: B018  refuses them here, where it is seen
    places = words(settings.device)
    needs = {"num_cpus": settings.threads, "num_gpus": sum(place.startswith("cuda") for place in places)}
    deployment = serve.deployment(Pictures).options(
        name="Pictures",
        autoscaling_config=settings.autoscaling,
        ray_actor_options=needs,
        max_ongoing_requests=settings.capacity,
        max_queued_requests=settings.capacity,
        graceful_shutdown_timeout_s=settings.drain_s,
    )
    return deployment.bind(settings)
