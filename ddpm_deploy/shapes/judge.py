"""Judging drawn scenes against what was asked for, by a classifier of rendered pictures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ddpm_deploy.shapes.reading import facts_loss
from ddpm_deploy.shapes.render import render
from ddpm_deploy.shapes.scene import FACT_SIZES, UNASKED, Scenes, draw_scenes, facts

TRAINING_SEED, TEST_SEED = 101, 102  # other pictures than the denoiser is trained on
STEPS, BATCH, LR = 1200, 64, 2e-3
NOISE = 0.05
TEST_COUNT = 2000
ASPECTS = {"relation": [0], "colour": [1, 3], "shape": [2, 4], "attributes": [0, 1, 2, 3, 4]}  # columns of `facts`

Array = NDArray[Any]


@dataclass(frozen=True)
class Verdict:
    """Parts, 0 to 1, of what was asked for that the pictures show.

    relation: pictures whose number of objects and arrangement are right. colour, shape: objects. attributes: all of
    these together. whole: pictures that are right in everything.
    """

    relation: float
    colour: float
    shape: float
    attributes: float
    whole: float


class SceneJudge:
    """A small convolutional network trained on rendered pictures of all combinations; it knows no diffusion model."""

    def __init__(self, seed: int = 0, steps: int = STEPS) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._network = _network()
            _fit(self._network, steps)
        self._network.eval()

    @cached_property
    def real(self) -> Verdict:
        """Rendered pictures that it was not trained on, judged like drawn ones."""
        scenes = draw_scenes(TEST_SEED, np.arange(TEST_COUNT), "all")
        return self.judge(render(scenes), scenes)

    def judge(self, pictures: Array, scenes: Scenes) -> Verdict:
        """Compare pictures (n, 3, 32, 32) in [-1, 1] with the scenes that were asked for."""
        asked = facts(scenes)
        counted = asked != UNASKED
        right = (self.read(pictures) == asked) & counted
        parts = {name: right[:, columns].sum() / counted[:, columns].sum() for name, columns in ASPECTS.items()}
        whole = np.mean(right.sum(axis=1) == counted.sum(axis=1))
        return Verdict(**{name: float(part) for name, part in parts.items()}, whole=float(whole))

    def read(self, pictures: Array) -> Array:
        """(n, 5): what it sees, as `facts` has it, but for the second object of a scene with one."""
        logits = _applied(self._network, pictures)
        return np.stack([head.argmax(dim=1).numpy() for head in torch.split(logits, list(FACT_SIZES), dim=1)], axis=1)

    def features(self, pictures: Array) -> Array:
        """(n, 128): its last hidden layer."""
        return np.asarray(_applied(self._network[:-1], pictures).numpy())


def _applied(network: nn.Module, pictures: Array) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = network(torch.from_numpy(np.clip(pictures, -1, 1).astype(np.float32)))
    return found


def _network() -> nn.Sequential:
    def layer(before: int, after: int, stride: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, stride=stride, padding=1), nn.BatchNorm2d(after), nn.ReLU()]

    layers = [*layer(3, 24, 2), *layer(24, 48), *layer(48, 64, 2), *layer(64, 64), *layer(64, 64, 2)]
    inner = [*layers, nn.Flatten(), nn.Linear(1024, 128), nn.ReLU()]
    return nn.Sequential(*inner, nn.Linear(128, sum(FACT_SIZES)))


def _fit(network: nn.Module, steps: int) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=LR)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        scenes = draw_scenes(TRAINING_SEED, np.arange(step * BATCH, (step + 1) * BATCH), "all")
        x = torch.from_numpy(render(scenes))
        loss = facts_loss(network(x + NOISE * torch.randn_like(x)), torch.from_numpy(facts(scenes)))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        rates.step()
