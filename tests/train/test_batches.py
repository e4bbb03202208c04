"""Data order and random numbers as functions of (seed, step)."""

from __future__ import annotations

import pytest
import torch
from train_toys import Jittered, ring

from ddpm_deploy.errors import TrainingError
from ddpm_deploy.train.batches import Batches, as_batch, batch_indices, stream_seed


@pytest.mark.parametrize(("size", "batch"), [(10, 4), (7, 7), (3, 8), (1, 2), (96, 32)])
def test_every_epoch_holds_every_sample_once_in_a_new_order(size: int, batch: int) -> None:
    epochs = 4
    steps = -(-epochs * size // batch)
    flat = [index for step in range(steps) for index in batch_indices(5, step, batch, size)]
    orders = [flat[epoch * size : (epoch + 1) * size] for epoch in range(epochs)]
    assert all(sorted(order) == list(range(size)) for order in orders)
    assert size < 4 or len({tuple(order) for order in orders}) == epochs
    assert all(len(batch_indices(5, step, batch, size)) == batch for step in range(steps))


def test_order_depends_on_the_seed() -> None:
    assert batch_indices(0, 0, 20, 100) != batch_indices(1, 0, 20, 100)


def test_streams_with_different_names_or_positions_have_different_seeds() -> None:
    seeds = {stream_seed(0, name, step) for name in ("noise", "dropout") for step in range(1000)}
    assert len(seeds) == 2000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_shares_of_the_processes_make_up_the_batch() -> None:
    whole = Batches(ring(), 12, 0)[3][0]
    shares = [Batches(ring(), 12, 0, rank, 3)[3][0] for rank in range(3)]
    assert torch.equal(torch.cat(shares), whole)


def test_a_batch_is_the_same_whenever_it_is_asked_for() -> None:
    batches = Batches(Jittered(), 8, 0)
    first = batches[5][0]
    batches[6]
    torch.manual_seed(1)
    assert torch.equal(batches[5][0], first)
    assert not torch.equal(Batches(Jittered(), 8, 1)[5][0], first)


def test_the_loader_gives_the_steps_asked_for_in_order() -> None:
    batches = Batches(Jittered(), 4, 0)
    loaded = [x for x, _ in batches.loader(3, 8, workers=0)]
    assert len(loaded) == 5
    assert all(torch.equal(x, batches[step][0]) for x, step in zip(loaded, range(3, 8), strict=True))


class Corrupt(Jittered):
    def __getitem__(self, index: int) -> torch.Tensor:
        raise TrainingError("a.png: cannot be read as an image")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_data_arrives_as_it_was_raised(workers: int) -> None:
    with pytest.raises(TrainingError) as caught:
        list(Batches(Corrupt(), 4, 0).loader(0, 2, workers))
    assert str(caught.value) == "a.png: cannot be read as an image"


def test_first_samples_repeat_where_the_data_set_is_small() -> None:
    x, condition = Batches(ring(3), 2, 0).first(5)
    assert torch.equal(x, ring(3)[[0, 1, 2, 0, 1]])
    assert condition == {}


def test_a_sample_is_x_or_x_with_named_conditions() -> None:
    x, condition = as_batch([torch.zeros(2, 3, dtype=torch.float64), {"labels": torch.zeros(2)}])
    assert x.dtype == torch.float32
    assert set(condition) == {"labels"}
    with pytest.raises(ValueError, match=r"got samples of type list, expected x, or \(x, dict"):
        as_batch([torch.zeros(2), torch.zeros(2)])
