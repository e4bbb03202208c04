"""Small problems that train in a fraction of a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_deploy.model import PointConfig, PointNet
from ddpm_deploy.schedule import NoiseSchedule
from ddpm_deploy.train import Run, TrainConfig, train
from ddpm_deploy.train.checkpoint import read_state, read_tensors

SCHEDULE = NoiseSchedule.linear(50, 1e-3, 0.2)


def ring(count: int = 96) -> Tensor:
    """Points on a circle, (count, 2)."""
    angle = torch.arange(count) * (2 * torch.pi / count)
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def point_net(seed: int = 0, hidden: int = 16) -> PointNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PointNet(PointConfig(dim=2, hidden=hidden, layers=1))


class OwnModule(nn.Module):
    """A module that knows nothing of the package, with dropout and a whole-number buffer."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.inner = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 2))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        out: Tensor = self.inner(torch.cat([x, t[:, None] / 50], dim=1))
        return out


class Jittered(torch.utils.data.Dataset[Tensor]):
    """A data set with a random transform, as users have."""

    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> Tensor:
        return ring(23)[index] + 0.1 * torch.randn(2)


def quick(**settings: Any) -> TrainConfig:
    usual: dict[str, Any] = {
        "steps": 12,
        "batch_size": 8,
        "lr": 1e-2,
        "checkpoint_every": 5,
        "log_every": 4,
        "sample_every": 0,
        "tensorboard": False,
    }
    return TrainConfig(**(usual | settings))


def train_points(out: Path, network: nn.Module | None = None, dataset: Any = None, **options: Any) -> Run:
    settings = {name: options.pop(name) for name in list(options) if name in vars(TrainConfig())}
    data = ring() if dataset is None else dataset
    return train(network or point_net(), data, SCHEDULE, out=out, config=quick(**settings), cpu=True, **options)


def stored(out: Path, step: int) -> dict[str, Any]:
    """Everything in one checkpoint: tensors by `part/name`, and the JSON state."""
    path = out / "checkpoints" / f"step-{step:08d}"
    tensors = {
        f"{part}/{name}": tensor
        for part in ("model", "ema", "optimizer")
        for name, tensor in read_tensors(path, part).items()
    }
    return {"tensors": tensors, "state": read_state(path)["state"]}


def assert_same(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    """Bit for bit."""
    assert actual["state"] == expected["state"]
    assert set(actual["tensors"]) == set(expected["tensors"])
    different = [n for n, tensor in expected["tensors"].items() if not torch.equal(tensor, actual["tensors"][n])]
    assert not different


class StopAt:
    """Asks to stop after a number of steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0
