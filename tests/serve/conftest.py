"""Samplers over a network made of numpy."""

import logging
from collections.abc import Iterator

import pytest
from numpy_network import numpy_sampler

from ddpm_deploy import Sampler


@pytest.fixture(autouse=True)
def log_of_the_test() -> Iterator[None]:
    """What the command sets up for its process is taken back: its stream is that of one test."""
    root, ours = logging.getLogger(), logging.getLogger("ddpm_deploy")
    handlers, level, our_level = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:], root.level = handlers, level
    ours.setLevel(our_level)


@pytest.fixture
def sampler() -> Sampler:
    """Draws (2, 4, 4) in microseconds."""
    return numpy_sampler()


@pytest.fixture
def guided() -> Sampler:
    """As `sampler`, with three classes and a null."""
    return numpy_sampler(labelled=True)
