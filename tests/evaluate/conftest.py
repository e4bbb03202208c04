"""Real samples and a model to evaluate, small enough for a test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ddpm_deploy import Sampler
from ddpm_deploy.bundle import default_bundle, read_bundle
from ddpm_deploy.evaluate.data import RealData, open_data


@pytest.fixture(scope="session")
def digits() -> RealData:
    return open_data("digits", read_bundle(default_bundle()).manifest)


@pytest.fixture(scope="session")
def sampler() -> Iterator[Sampler]:
    with Sampler.load() as opened:
        yield opened


@pytest.fixture(scope="session")
def labelled_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 pictures (3, 8, 8) of three classes, which differ in brightness."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    x = rng.integers(0, 60, (60, 3, 8, 8)) + 90 * labels[:, None, None, None]
    path = tmp_path_factory.mktemp("archive") / "pictures.npz"
    np.savez(path, x=x.astype(np.uint8), labels=labels)
    return path
