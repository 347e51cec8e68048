import numpy as np
import pytest

from segkit.data import DataError, SegmentationDataset
from segkit.data.dataset import JoinedDatasets


class Flat(SegmentationDataset):
    """Images of one value each, labelled 1."""

    def __init__(self, *values, class_names=("a", "b"), ignore_classes=()):
        self.values, self.class_names, self.ignore_classes = values, class_names, ignore_classes

    def __len__(self):
        return len(self.values)

    def image(self, index):
        return np.full((2, 2, 3), self.values[index], dtype=np.uint8)

    def mask(self, index):
        return np.ones((2, 2), dtype=np.uint8)

    def name(self, index):
        return f"flat {self.values[index]}"


def test_images_come_one_set_after_the_other():
    joined = JoinedDatasets([Flat(5, 6), Flat(), Flat(7, 8, 9).subset([2, 0])])
    assert len(joined) == 4
    assert [int(joined[i][0][0, 0, 0]) for i in range(4)] == [5, 6, 9, 7]
    assert [joined.name(i) for i in range(-4, 0)] == ["flat 5", "flat 6", "flat 9", "flat 7"]
    with pytest.raises(IndexError):
        joined.image(4)


def test_a_data_set_shows_its_size_and_classes():
    assert repr(Flat(5, 6)) == "<Flat: 2 images, 2 classes: a, b>"
    many = Flat(5, class_names=[f"c{i}" for i in range(40)]).subset([0])
    assert repr(many).startswith("<Subset: 1 image, 40 classes: c0, c1, ")
    assert repr(many).endswith("c10, c11, ...>")


def test_ignored_classes_stay_ignored():
    joined = JoinedDatasets([Flat(1, ignore_classes=("b",)), Flat(2, ignore_classes=("b",))])
    assert (joined[1][1] == 255).all()
    assert joined.ignored_labels == (1,)
    assert (joined.mask(1) == 1).all()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Flat(1, class_names=("a", "c")), "differ in their classes: a, b / a, c"),
        (Flat(1, ignore_classes=("b",)), "differ in their ignored classes"),
    ],
)
def test_sets_that_do_not_fit_are_an_error(other, message):
    with pytest.raises(DataError, match=message):
        JoinedDatasets([Flat(0), other])
