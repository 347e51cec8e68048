import cv2
import numpy as np
import pytest

from segkit.data.image_groups import BLOCK, difference_hash, hash_images, near_pairs
from segkit.data.images import write_image


def photograph(seed, size=160):
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 255, (7, 7, 3), dtype=np.uint8)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def test_a_copy_that_was_resized_brightened_and_saved_again_is_near_and_another_image_is_not(tmp_path):
    image = photograph(0)
    small = cv2.convertScaleAbs(cv2.resize(image, (100, 90), interpolation=cv2.INTER_AREA), alpha=0.9, beta=8)
    for name, pixels in (("a.png", image), ("b.jpg", small), ("c.png", photograph(1)), ("d.png", photograph(2))):
        write_image(tmp_path / name, pixels)
    hashes = hash_images([tmp_path / name for name in ("a.png", "b.jpg", "c.png", "d.png")])
    assert hashes.shape == (4, 144)
    assert near_pairs(hashes) == [(0, 1)]


def test_the_hash_worked_out_by_hand():
    ramp = np.repeat(np.repeat(np.arange(9, dtype=np.uint8)[None, :, None] * 20, 9, axis=0), 3, axis=2)
    assert difference_hash(ramp)[:72].all()
    assert not difference_hash(ramp)[72:].any()
    assert not difference_hash(ramp[:, ::-1]).any()


@pytest.mark.parametrize("number", [40, BLOCK + 40], ids=["one-block", "two-blocks"])
def test_near_pairs_equal_the_pairs_of_plain_loops(number):
    hashes = np.random.default_rng(0).random((number, 24)) < 0.5
    expected = []
    for i in range(number):
        near = (hashes[i] != hashes[i + 1 :]).sum(1) <= 5
        expected += [(i, i + 1 + int(j)) for j in near.nonzero()[0]]
    assert expected
    assert sorted(near_pairs(hashes, distance=5)) == expected


def test_no_images_have_no_hashes():
    assert near_pairs(hash_images([])) == []
