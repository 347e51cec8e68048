import cv2
import numpy as np
import pytest
import torch

from segkit.metrics import BoundaryIoU, ConfusionMatrix


def boundary_iou(prediction, target, classes=4, **options):
    metric = BoundaryIoU(classes, **options)
    metric.update(prediction, target)
    return metric.compute()


def blobs(seed=0, classes=4, size=(2, 24, 31), ignored=0.05):
    random = np.random.default_rng(seed)
    coarse = random.integers(classes, size=(size[0], size[1] // 6 + 1, size[2] // 6 + 1))
    prediction = coarse.repeat(6, 1).repeat(6, 2)[:, : size[1], : size[2]]
    target = np.roll(prediction, (1, 2), (1, 2))
    target[random.random(size) < ignored] = 255
    return prediction, target


def oracle_band(labels, removed, distance):
    band = np.zeros(labels.shape, bool)
    height, width = labels.shape
    for y, x in np.ndindex(labels.shape):
        for v in range(y - distance, y + distance + 1):
            for u in range(x - distance, x + distance + 1):
                inside = 0 <= v < height and 0 <= u < width
                band[y, x] |= not inside or (not removed[v, u] and labels[v, u] != labels[y, x])
    return band & ~removed


def oracle_iou(prediction, target, classes, distance):
    both, either = np.zeros(classes), np.zeros(classes)
    for one, truth in zip(prediction, target, strict=True):
        removed = ~np.isin(truth, range(classes))
        bands = [oracle_band(x, removed, distance) for x in (one, truth)]
        for c in range(classes):
            found, real = bands[0] & (one == c), bands[1] & (truth == c)
            both[c] += (found & real).sum()
            either[c] += (found | real).sum()
    return [b / e if e else np.nan for b, e in zip(both, either, strict=True)]


@pytest.mark.parametrize(("ratio", "distance"), [(0.001, 1), (0.05, 2), (0.1, 4), (0.2, 8)])
def test_scores_equal_a_loop_over_the_pixels_and_their_neighbours(ratio, distance):
    prediction, target = blobs()
    prediction[0, :3, :3] = 9  # no class
    target[1, -2:] = 77  # no class
    scores = boundary_iou(prediction, target, 5, dilation_ratio=ratio)
    assert scores.iou == pytest.approx(oracle_iou(prediction, target, 5, distance), nan_ok=True)
    assert scores.miou == pytest.approx(np.nanmean(scores.iou))
    assert scores.foreground_miou == pytest.approx(np.nanmean(scores.iou[1:]))


@pytest.mark.parametrize("ratio", [0.02, 0.07])
def test_scores_equal_erosion_with_opencv(ratio):
    prediction, target = blobs(ignored=0, size=(3, 60, 45))
    distance = max(1, round(ratio * np.hypot(60, 45)))
    kernel = np.ones((3, 3), np.uint8)

    def boundary(mask):
        padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        return mask & (cv2.erode(padded, kernel, iterations=distance)[1:-1, 1:-1] == 0)

    iou = boundary_iou(prediction, target, dilation_ratio=ratio).iou
    for c in range(4):
        found, real = ([boundary(x == c) for x in maps] for maps in (prediction, target))
        both, either = np.logical_and(found, real).sum(), np.logical_or(found, real).sum()
        assert iou[c] == pytest.approx(both / either)


def test_a_shifted_square_worked_out_by_hand():
    target, prediction = np.zeros((2, 20, 20), int)
    target[5:13, 5:13] = 1
    prediction[5:13, 6:14] = 1
    scores = boundary_iou(prediction, target, 2)  # 2 % of the diagonal is half a pixel: one pixel
    assert scores.iou[1] == pytest.approx(14 / 42)  # rings of 28 pixels, 7 shared above and 7 below
    assert count_iou(prediction, target)[1] == pytest.approx(56 / 72)


def count_iou(prediction, target):
    confusion = ConfusionMatrix(2)
    confusion.update(prediction, target)
    return confusion.compute().iou


def test_thin_classes_have_their_plain_iou():
    target, prediction = np.zeros((2, 50, 50), int)
    target[20:22], prediction[21:23] = 1, 1
    assert boundary_iou(prediction, target, 2).iou[1] == count_iou(prediction, target)[1] == pytest.approx(1 / 3)


def test_a_perfect_prediction_scores_one_beside_ignored_regions_too():
    prediction, _ = blobs()
    target = prediction.copy()
    target[:, 5:12, 3:20] = 255
    assert boundary_iou(prediction, target).iou.tolist() == [1, 1, 1, 1]


def test_what_is_predicted_on_ignored_pixels_changes_nothing():
    prediction, target = blobs(ignored=0.3)
    other = np.where(target == 255, (prediction + 1) % 4, prediction)
    assert boundary_iou(prediction, target).to_dict() == boundary_iou(other, target).to_dict()


def test_an_ignored_region_makes_no_contour():
    target = np.zeros((40, 40), int)
    prediction = target.copy()
    target[10:30, 10:30] = 255
    metric = BoundaryIoU(1)
    metric.update(prediction, target)
    assert metric.counts[0, 0] == 40 * 40 - 38 * 38  # the border of the image alone


def test_pixels_of_all_images_are_summed_before_the_division():
    prediction, target = blobs(size=(3, 24, 31))
    one, other = BoundaryIoU(4), BoundaryIoU(4)
    one.update(prediction[0], target[0])
    other.update(prediction[1:], target[1:])
    one += other
    assert one.compute().to_dict() == boundary_iou(prediction, target).to_dict()


def test_logits_and_labels_of_any_type_score_the_same():
    prediction, target = blobs()
    expected = boundary_iou(prediction, target).to_dict()
    logits = torch.nn.functional.one_hot(torch.from_numpy(prediction), 4).movedim(-1, 1).float()
    assert boundary_iou(logits, target).to_dict() == expected
    assert boundary_iou(prediction.astype(np.uint8), target.astype(np.uint8)).to_dict() == expected
    assert boundary_iou(prediction.astype(np.int16), target).to_dict() == expected
    many = boundary_iou(prediction, np.where(target == 255, 999, target), 300, ignore_index=999)
    assert many.iou[:4].tolist() == boundary_iou(prediction, target).iou.tolist()


def test_one_pixel_is_its_own_contour():
    assert boundary_iou(np.zeros((1, 1), int), np.zeros((1, 1), int), 2).iou[0] == 1
    assert boundary_iou(np.ones((1, 1), int), np.zeros((1, 1), int), 2).iou.tolist() == [0, 0]


@pytest.mark.parametrize("target", [np.full((2, 5, 5), 255), np.zeros((0, 5, 5), int), np.zeros((2, 0, 5), int)])
def test_nothing_counted_gives_nan(target):
    scores = boundary_iou(np.zeros(target.shape, int), target)
    assert np.isnan([scores.miou, *scores.iou]).all()


def test_excluded_classes_enter_no_mean():
    prediction, target = blobs()
    scores = boundary_iou(prediction, target, exclude=(0, 2))
    assert scores.miou == scores.foreground_miou == pytest.approx((scores.iou[1] + scores.iou[3]) / 2)


def test_the_table_and_the_flat_scores_name_the_classes():
    prediction, target = blobs(classes=2)
    scores = boundary_iou(prediction, target, 2, class_names=("ground", "can"))
    assert [line.split()[0] for line in str(scores).splitlines()] == ["class", "ground", "can", "mean"]
    assert list(scores.to_dict())[-1] == "boundary_iou/can"


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="`dilation_ratio` must be positive, got 0"):
        BoundaryIoU(2, dilation_ratio=0)
    with pytest.raises(ValueError, match=r"`target` must be \(N, H, W\) or \(H, W\), got \(4,\)"):
        BoundaryIoU(2).update(np.zeros(4, int), np.zeros(4, int))
