"""Gallery: which images the pictures of a run show."""

import numpy as np

from segkit.metrics import PerImageConfusion
from segkit.report import Gallery
from segkit.report.gallery import Highest


def test_the_worst_images_come_from_the_worst_up_and_the_best_from_the_best_down():
    gallery, target = Gallery(8, side=8), np.zeros((4, 4), np.uint8)
    for wrong in [3, 0, 7, 1, 5, 2, 6, 4]:
        mask = target.copy()
        mask.flat[:wrong] = 1
        confusion = PerImageConfusion(2)
        confusion.update(mask, target)
        gallery.offer(f"{wrong} wrong", np.zeros((4, 4, 3), np.uint8), target, mask, confusion)
    assert [row.captions[0] for row in gallery.worst.rows()] == ["7 wrong", "6 wrong", "5 wrong", "4 wrong"]
    assert [row.captions[0] for row in gallery.best.rows()] == ["0 wrong", "1 wrong", "2 wrong", "3 wrong"]
    assert [row.captions[0] for row in gallery.even] == ["3 wrong", "7 wrong", "2 wrong", "4 wrong"]


def test_the_highest_are_kept_in_their_order_and_of_equals_the_first():
    kept = Highest(3)
    for number, rank in enumerate([0.2, 0.9, 0.5, 0.9, 0.5, 0.1]):
        if kept.accepts((rank,)):
            kept.add((rank,), number)
    assert kept.rows() == [1, 3, 2]
