import numpy as np
import pytest

from segkit.data.batches import TrainBatches, repeat_factors


@pytest.mark.parametrize(("length", "batch_size", "sizes"), [(12, 4, [4, 4, 4]), (9, 4, [4, 4]), (10, 4, [4, 4, 2])])
def test_only_a_last_batch_of_one_is_dropped(length, batch_size, sizes):
    batches = TrainBatches(length, batch_size)
    assert [len(batch) for batch in batches] == sizes
    assert len(batches) == len(sizes)


@pytest.mark.parametrize(("length", "batch_size"), [(1, 4), (3, 4), (5, 1)])
def test_small_sets_are_not_dropped(length, batch_size):
    assert sum(len(batch) for batch in TrainBatches(length, batch_size)) == length


def test_each_image_comes_once_in_an_epoch():
    indices = [index for batch in TrainBatches(10, 5) for index, _ in batch]
    assert sorted(indices) == list(range(10))


def test_repeat_factors_worked_out_by_hand():
    presence = np.array([[1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]], dtype=bool)
    assert repeat_factors(presence, threshold=1.0).tolist() == pytest.approx([2, 1, 1, 1])
    assert repeat_factors(presence, threshold=0.1).tolist() == [1, 1, 1, 1]


def test_images_come_as_often_as_their_shares_say_in_an_epoch_of_the_same_length():
    batches = TrainBatches(100, 10, shares=np.array([5.0] * 10 + [1.0] * 90))
    drawn = np.zeros(100)
    for batches.epoch in range(20):
        indices = [index for batch in batches for index, _ in batch]
        assert len(indices) == 100
        drawn += np.bincount(indices, minlength=100)
    assert drawn[:10] / 20 == pytest.approx(500 / 140, abs=0.3)
    assert drawn[10:] / 20 == pytest.approx(100 / 140, abs=0.3)
