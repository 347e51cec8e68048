import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from segkit.errors import UsageError
from segkit.sliding_window import SlidingWindow


def same(windows):
    return windows


@pytest.mark.parametrize("blend", ["gaussian", "constant"])
@pytest.mark.parametrize("overlap", [0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (9, 8), (5, 31), (40, 23)])
def test_the_weights_of_all_windows_add_up_to_one(size, overlap, blend):
    image = torch.randn(2, *size)
    found = SlidingWindow(8, overlap=overlap, blend=blend, batch_size=3)(same, image)
    torch.testing.assert_close(found, image)


def test_windows_have_one_size_cover_the_image_and_overlap_enough():
    seen = torch.zeros(37, 50)
    corners = []
    rows, columns = torch.meshgrid(torch.arange(37.0), torch.arange(50.0), indexing="ij")

    def predict(windows):
        for window in windows:
            top, left = int(window[0, 0, 0]), int(window[1, 0, 0])
            assert window.shape == (2, 16, 12)
            seen[top : top + 16, left : left + 12] += 1
            corners.append((top, left))
        return windows

    SlidingWindow((16, 12), overlap=0.25)(predict, torch.stack([rows, columns]))
    assert seen.min() >= 1
    tops, lefts = (sorted(set(c)) for c in zip(*corners, strict=True))
    assert (tops[0], tops[-1], lefts[0], lefts[-1]) == (0, 21, 0, 38)
    assert max(b - a for a, b in pairwise(tops)) <= 12
    assert max(b - a for a, b in pairwise(lefts)) <= 9


def test_blending_equals_the_slow_way():
    torch.manual_seed(0)
    image, window = torch.randn(1, 21, 26), SlidingWindow(8, overlap=0.5, batch_size=5)
    answers = []

    def predict(windows):
        result = torch.randn(len(windows), 3, 8, 8)
        answers.extend(result)
        return result

    found = window(predict, image)
    total, weights = torch.zeros(3, 21, 26), torch.zeros(21, 26)
    x = (torch.arange(8) - 3.5) / 1
    line = torch.exp(-x.square() / 2).clamp(min=1e-3)
    answers = iter(answers)
    tops = torch.linspace(0, 13, 5).round().int().tolist()
    lefts = torch.linspace(0, 18, 6).round().int().tolist()
    for top in tops:
        for left in lefts:
            weight = line[:, None] * line
            total[:, top : top + 8, left : left + 8] += next(answers) * weight
            weights[top : top + 8, left : left + 8] += weight
    torch.testing.assert_close(found, total / weights)


def test_bands_come_from_the_top_and_are_no_higher_than_the_window():
    image = torch.randn(1, 100, 9)
    tops, heights = zip(*((top, band.shape[1]) for top, band in SlidingWindow(8).bands(same, image)), strict=True)
    assert sum(heights) == 100
    assert list(tops) == [sum(heights[:i]) for i in range(len(heights))]
    assert max(heights) <= 8


def test_no_batch_is_larger_than_asked():
    sizes = []

    def predict(windows):
        sizes.append(len(windows))
        return windows

    SlidingWindow(4, overlap=0, batch_size=3)(predict, torch.randn(1, 4, 29))
    assert sizes == [3, 3, 2]


def test_the_middle_of_a_window_counts_more_than_its_border():
    answers = iter([torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)])
    blended = SlidingWindow(8, batch_size=1)(lambda windows: next(answers), torch.zeros(1, 8, 12))[0, 0]
    assert (blended[1:] >= blended[:-1]).all()
    assert blended[4] < 0.1 < 0.9 < blended[7]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "at least 1"),
        ({"size": (4, 4, 4)}, "at least 1"),
        ({"overlap": 1}, "less than 1"),
        ({"overlap": -0.1}, "less than 1"),
        ({"blend": "hann"}, "unknown blend 'hann'"),
        ({"batch_size": 0}, "at least 1"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SlidingWindow(**options)


def test_numbers_of_numpy_are_numbers():
    assert SlidingWindow(np.int64(16)) == SlidingWindow(16)
    assert SlidingWindow(np.array([16, 12])) == SlidingWindow((np.int32(16), 12), overlap=np.float32(0.5))


@pytest.mark.parametrize(
    "options", [{"size": "16"}, {"size": 16.5}, {"size": None}, {"size": (16.5, 3)}, {"size": 16, "batch_size": 2.5}]
)
def test_what_is_no_size_is_one_sentence(options):
    with pytest.raises(ValueError, match="`size` must be one or two whole numbers of at least 1, and `batch_size` one"):
        SlidingWindow(**options)


@pytest.mark.parametrize("window", [SlidingWindow(64), SlidingWindow(np.array([32, 48]), np.float32(0.25), above=9)])
def test_a_window_is_stored_as_plain_json(window):
    assert SlidingWindow.read(json.loads(json.dumps(window.write()))) == window


def test_what_is_no_stored_window_is_one_sentence():
    assert SlidingWindow.read(None) is None
    for stored in (64, {"size": [64, 64], "step": 2}):
        with pytest.raises(UsageError, match="`window` must have size, overlap, blend, batch_size, above, got"):
            SlidingWindow.read(stored)
    for above in (-1, "16", 0.5):
        with pytest.raises(UsageError, match="`above` must be a whole number of 0 or more"):
            SlidingWindow.read({"above": above})


def test_a_window_says_its_size_and_when_it_is_used():
    assert str(SlidingWindow(64)) == "windows of 64 pixels"
    assert str(SlidingWindow((64, 48), above=2**24)) == "windows of 64 x 48 pixels above 16 megapixels"


def test_an_overlap_that_is_text_is_one_sentence():
    with pytest.raises(ValueError, match=r"`overlap` must be at least 0 and less than 1, got '0\.5'"):
        SlidingWindow(16, overlap="0.5")
