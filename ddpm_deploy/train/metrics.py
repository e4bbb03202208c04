"""The record of a run: metrics.csv, and TensorBoard event files."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from ddpm_deploy.errors import TrainingError
from ddpm_deploy.train.checkpoint import write_file

COLUMNS = ("step", "loss", "lr", "grad_norm", "images_per_s")
CSV_NAME = "metrics.csv"


class Window:
    """Sums over the steps since the last report, kept on the device so that no step waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.restart()

    def restart(self) -> None:
        """Begin a new window now."""
        self.loss = torch.zeros((), device=self.device)
        self.norm = torch.zeros((), device=self.device)
        self.steps = 0
        self.started = time.perf_counter()
        self._idle = 0.0

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """Count one step."""
        self.loss += loss.detach()
        self.norm += norm.detach()
        self.steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of something that is not training out of the images per second."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._idle += time.perf_counter() - began

    def mean_loss(self) -> Tensor:
        """() of this process."""
        return self.loss / max(1, self.steps)

    def mean_norm(self) -> float:
        """The gradient's norm before clipping."""
        return float(self.norm) / max(1, self.steps)

    def steps_per_s(self) -> float:
        """Pace of training."""
        return self.steps / max(time.perf_counter() - self.started - self._idle, 1e-9)


class Metrics:
    """Appends one row at a time; rows of steps after `step`, left by a run that was cut off, are dropped."""

    def __init__(self, path: Path, step: int, tensorboard: bool) -> None:
        self.file = path / CSV_NAME
        _truncate(self.file, step)
        self.stream = open(self.file, "a", newline="")  # noqa: SIM115
        self.writer = _event_writer(path / "tensorboard", step) if tensorboard else None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record values, by the names in `COLUMNS`, after `step` steps."""
        csv.writer(self.stream).writerow([step, *(f"{values[name]:.6g}" for name in COLUMNS[1:])])
        self.stream.flush()
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def picture(self, step: int, picture: Image) -> None:
        """Record a grid of samples for TensorBoard."""
        if self.writer is not None:
            self.writer.add_image("samples", np.array(picture.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close the files."""
        self.stream.close()
        if self.writer is not None:
            self.writer.close()


def _truncate(file: Path, step: int) -> None:
    rows: list[list[str]] = []
    if file.is_file():
        with open(file, newline="") as stream:
            rows = [row for row in csv.reader(stream) if row and row[0].isdigit() and int(row[0]) <= step]
    lines = [",".join(row) for row in (list(COLUMNS), *rows)]
    write_file(file, ("\r\n".join(lines) + "\r\n").encode())


def _event_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise TrainingError("tensorboard: is not installed; pip install tensorboard, or switch it off") from None
    return SummaryWriter(folder, purge_step=step + 1)
