"""Which image goes where: each exactly once, the same steps for any number of processes, resumable."""

import numpy as np
import pytest

from data.order import EpochOrder


def orders(size, world, **options):
    return [EpochOrder(size, 12, seed=5, rank=rank, world_size=world, **options) for rank in range(world)]


@pytest.mark.parametrize("size", [1, 7, 24, 1797])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_sees_each_image_exactly_once(size, world):
    seen = np.concatenate([order.indices() for order in orders(size, world, shuffle=False)])
    assert sorted(seen) == list(range(size))


@pytest.mark.parametrize("size", [24, 100, 1797])
def test_a_step_trains_on_the_same_images_for_any_number_of_processes(size):
    whole = orders(size, 1)[0].indices().reshape(-1, 12)
    assert len(whole) == size // 12
    assert len(np.unique(whole)) == whole.size
    for world in (2, 3, 4):
        parts = [order.indices().reshape(len(whole), -1) for order in orders(size, world)]
        for step in range(len(whole)):
            assert sorted(np.concatenate([part[step] for part in parts])) == sorted(whole[step])


def test_epochs_differ_seeds_differ_and_an_epoch_can_be_returned_to():
    order = orders(100, 1)[0]
    first = order.indices()
    order.set_epoch(1)
    assert not np.array_equal(first, order.indices())
    order.set_epoch(0)
    assert np.array_equal(first, order.indices())
    assert not np.array_equal(first, EpochOrder(100, 12, seed=6).indices())


def test_repeated_augmentation_sees_a_third_of_the_images_three_times_and_draws_differ():
    order = EpochOrder(120, 12, repeats=3)
    _, counts = np.unique(order.indices(), return_counts=True)
    assert (counts == 3).all()
    assert len(counts) == 40
    draws = list(order)
    assert len(set(draws)) == len(draws) == len(order) == 120


@pytest.mark.parametrize("world", [1, 3])
def test_a_resumed_epoch_starts_with_the_next_image_and_the_following_epoch_is_whole(world):
    for order in orders(100, world):
        whole, draws, size = order.indices(), list(order), len(order)
        seen = 3 * 12 // world
        order.set_epoch(1)
        following = order.indices()
        order.resume(0, seen)
        assert len(order) == size  # Lightning counts the batches of before
        assert np.array_equal(order.indices(), whole[seen:])
        assert list(order) == draws[seen:]
        order.set_epoch(1)
        assert np.array_equal(order.indices(), following)
