"""Which rank reads which images, when."""

import numpy as np
import pytest

from core.data.samplers import TrainSampler, evaluation_rows
from core.errors import UserError


def epoch_of(world_size: int, images_per_step: int = 12, epoch: int = 3, seed: int = 5, num_images: int = 100):
    """All ranks' rows of an epoch: (ranks, steps, rows)."""
    batch = images_per_step // world_size
    samplers = [TrainSampler(num_images, batch, rank, world_size, seed) for rank in range(world_size)]
    return np.array([list(sampler.epoch(epoch)) for sampler in samplers])


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_no_row_and_rows_of_an_epoch_are_distinct(world_size):
    rows = epoch_of(world_size)
    assert rows.shape == (world_size, 100 // 12, 12 // world_size)
    assert len(np.unique(rows)) == rows.size == 96 and rows.min() >= 0 and rows.max() < 100


def test_every_step_has_the_same_rows_on_one_two_and_three_ranks():
    steps = [np.sort(epoch_of(world_size).transpose(1, 0, 2).reshape(8, 12)) for world_size in (1, 2, 3)]
    assert np.array_equal(steps[0], steps[1]) and np.array_equal(steps[0], steps[2])


def test_order_depends_on_epoch_and_seed_alone():
    reference = epoch_of(1)
    assert np.array_equal(reference, epoch_of(1))
    assert not np.array_equal(reference, epoch_of(1, epoch=4))
    assert not np.array_equal(reference, epoch_of(1, seed=6))
    assert not np.array_equal(epoch_of(1, epoch=4, seed=5), epoch_of(1, epoch=5, seed=4))


def test_left_out_rows_differ_between_epochs():
    left_out = [set(range(100)) - set(epoch_of(1, epoch=epoch).ravel()) for epoch in range(4)]
    assert all(len(rows) == 4 for rows in left_out) and len(set().union(*left_out)) > 8


def test_epoch_started_in_the_middle_continues_exactly():
    sampler = TrainSampler(100, 4, 1, 3, 5)
    whole = list(sampler.epoch(2))
    assert np.array_equal(list(sampler.epoch(2, 5)), whole[5:]) and len(whole) == sampler.steps_per_epoch == 8
    assert list(sampler.epoch(2, 8)) == []


def test_data_smaller_than_a_step_is_reported():
    assert TrainSampler(24, 8, 0, 3, 0).steps_per_epoch == 1
    with pytest.raises(UserError, match="24 images .8 a rank. but the data has only 23: set a smaller batch_size"):
        TrainSampler(23, 8, 0, 3, 0)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("num_rows", [0, 1, 9, 10, 11, 35])
def test_evaluation_covers_every_row_once_on_any_number_of_ranks(world_size, num_rows):
    blocks = [block for rank in range(world_size) for block in evaluation_rows(num_rows, 5, rank, world_size)]
    assert sorted(row for block in blocks for row in block) == list(range(num_rows))
    assert all(block.start % 5 == 0 and 0 < len(block) <= 5 for block in blocks)
