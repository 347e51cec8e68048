import numpy as np
import pytest
import torch

from segkit.data import signed_distance_maps
from segkit.errors import UsageError
from segkit.losses import boundary_loss


def oracle(mask, num_classes, ignore_index):
    maps = np.zeros((num_classes, *mask.shape))
    pixels = list(np.ndindex(mask.shape))
    for c in range(num_classes):
        inside = {p for p in pixels if mask[p] == c and mask[p] != ignore_index}
        outside = set(pixels) - inside
        for p in pixels:
            if inside and outside and mask[p] != ignore_index:
                distance = min(np.hypot(p[0] - q[0], p[1] - q[1]) for q in (outside if p in inside else inside))
                maps[c][p] = -distance if p in inside else distance
    return maps


@pytest.mark.parametrize("ignore_index", [255, 1, None])
def test_distances_equal_the_smallest_over_all_pairs(ignore_index):
    random = np.random.default_rng(0)
    mask = random.integers(3, size=(9, 7)).repeat(2, 0).astype(np.uint8)
    if ignore_index == 255:
        mask[random.random(mask.shape) < 0.2] = 255
    np.testing.assert_allclose(
        signed_distance_maps(mask, 4, ignore_index=ignore_index), oracle(mask, 4, ignore_index), atol=1e-4
    )


def test_a_class_without_a_boundary_has_no_distances():
    assert not signed_distance_maps(np.full((3, 4), 1, np.uint8), 2).any()
    assert not signed_distance_maps(np.full((3, 4), 255, np.uint8), 2).any()


def test_the_boundary_loss_is_least_if_the_prediction_is_the_mask():
    mask = np.zeros((1, 12, 12), np.uint8)
    mask[0, 3:8, 4:9] = 1
    maps = torch.from_numpy(signed_distance_maps(mask[0], 2))[None]
    target = torch.from_numpy(mask)

    def loss(prediction):
        logits = 50 * torch.nn.functional.one_hot(prediction.long(), 2).movedim(-1, 1).float()
        return boundary_loss(logits, target, maps).item()

    exact = loss(target)
    assert exact < 0
    assert exact < loss(target.roll(1, 1)) < loss(target.roll(4, 1))


def test_a_wrong_mask_is_named():
    with pytest.raises(ValueError, match="label 7, expected 0 to 1"):
        signed_distance_maps(np.full((2, 2), 7, np.uint8), 2)
    with pytest.raises(ValueError, match="integer class indices"):
        signed_distance_maps(np.zeros((2, 2)), 2)


def test_a_class_255_is_not_ignored_silently():
    mask = np.array([[255, 3]], dtype=np.uint8)
    with pytest.raises(UsageError, match="`ignore_index` is 255, but with 300 classes"):
        signed_distance_maps(mask, 300)
    assert signed_distance_maps(mask, 300, ignore_index=None)[255].tolist() == [[-1, 1]]
