"""Samplers over a network made of numpy."""

import pytest
from numpy_network import numpy_sampler

from ddpm_deploy import Sampler


@pytest.fixture
def sampler() -> Sampler:
    """Draws (2, 4, 4) in microseconds."""
    return numpy_sampler()


@pytest.fixture
def guided() -> Sampler:
    """As `sampler`, with three classes and a null."""
    return numpy_sampler(labelled=True)
