import numpy as np
import pytest
import torch

from segkit.metrics import ConfusionMatrix, PerImageConfusion


def example(seed=0, classes=4, size=(7, 6, 8)):
    random = np.random.default_rng(seed)
    target = random.integers(classes, size=size)
    target[:3][target[:3] == 2] = 0  # class 2 is not in the first three
    prediction = np.where(random.random(size) < 0.6, target, random.integers(classes, size=size))
    target[random.random(size) < 0.2] = 255
    return prediction, target


def per_image(prediction, target, classes=4, **options):
    images = PerImageConfusion(classes, **options)
    images.update(prediction, target)
    return images


def oracle_iou(prediction, target, classes):
    iou = np.full((len(target), classes), np.nan)
    for i, (one, truth) in enumerate(zip(prediction, target, strict=True)):
        valid = truth != 255
        for c in set(truth[valid].tolist()):
            found, real = (one == c) & valid, truth == c
            iou[i, c] = (found & real).sum() / (found | real).sum()
    return iou


def worst(values, share):
    values = sorted(v for v in values if not np.isnan(v))
    return np.mean(values[: max(1, int(round(share * len(values), 9)))])


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3, 0.5, 1])
def test_means_and_worst_cases_equal_loops_over_the_images(share):
    prediction, target = example()
    scores = per_image(prediction, target).compute()
    iou = oracle_iou(prediction, target, 4)
    assert scores.iou == pytest.approx(iou, nan_ok=True)
    assert scores.image_miou == pytest.approx(np.mean([np.nanmean(row) for row in iou]))
    assert scores.class_miou == pytest.approx(np.mean([np.nanmean(column) for column in iou.T]))
    assert scores.worst_image_miou(share) == pytest.approx(worst([np.nanmean(row) for row in iou], share))
    assert scores.worst_class_miou(share) == pytest.approx(np.mean([worst(column, share) for column in iou.T]))


def test_all_shares_are_the_mean_of_the_ten_shares():
    scores = per_image(*example()).compute()
    shares = [i / 10 for i in range(1, 11)]
    assert scores.all_shares_image_miou == pytest.approx(np.mean([scores.worst_image_miou(s) for s in shares]))
    assert scores.all_shares_class_miou == pytest.approx(np.mean([scores.worst_class_miou(s) for s in shares]))


def test_a_small_object_in_one_image_weighs_as_much_as_a_large_one():
    target, prediction = np.zeros((2, 2, 10, 10), int)
    target[0, :5] = prediction[0, :5] = 1  # 50 pixels, all found
    target[1, 0, 0] = 1  # one pixel, missed
    images = per_image(prediction, target, 2)
    assert images.total().compute().iou[1] == pytest.approx(50 / 51)
    assert images.compute().of_class[1] == pytest.approx(0.5)


def test_a_false_alarm_counts_against_the_class_it_hides_not_for_its_own():
    scores = per_image(np.array([[[1, 0, 0, 0]]]), np.zeros((1, 1, 4), int), 2).compute()
    assert scores.iou[0, 0] == 0.75
    assert np.isnan(scores.iou[0, 1])


def test_the_total_is_the_confusion_matrix_of_the_set():
    prediction, target = example()
    confusion = ConfusionMatrix(4, exclude=(1,))
    confusion.update(prediction, target)
    total = per_image(prediction, target, exclude=(1,)).total()
    assert torch.equal(total.counts, confusion.counts)
    assert total.compute().to_dict() == confusion.compute().to_dict()


def test_images_one_by_one_merged_or_as_a_batch_are_the_same_in_the_same_order():
    prediction, target = example()
    whole, single, other = per_image(prediction, target), PerImageConfusion(4), PerImageConfusion(4)
    for i in range(3):
        single.update(prediction[i], target[i])
    for i in range(3, 7):
        other.update(torch.from_numpy(prediction[i]), torch.from_numpy(target[i]))
    single += other
    assert torch.equal(single.counts, whole.counts)
    assert single.compute().to_dict() == whole.compute().to_dict()


def test_a_saved_state_keeps_every_image():
    images, other = per_image(*example()), PerImageConfusion(4)
    other.load_state_dict(images.state_dict())
    assert torch.equal(other.counts, images.counts)
    other.reset()
    assert len(other.counts) == 0
    with pytest.raises(ValueError, match="`state` must be counts"):
        PerImageConfusion(3).load_state_dict(images.state_dict())
    with pytest.raises(ValueError, match="cannot merge"):
        PerImageConfusion(3).merge(images)


def test_worst_images_come_first_and_those_without_pixels_last():
    target = np.zeros((4, 1, 4), int)
    target[1] = 255
    prediction = np.zeros((4, 1, 4), int)
    prediction[2, 0, :3], prediction[3, 0, 0] = 1, 1
    scores = per_image(prediction, target, 2).compute()
    assert scores.worst_images().tolist() == [2, 3, 0, 1]
    assert scores.image_miou == pytest.approx((0.25 + 0.75 + 1) / 3)


def test_excluded_classes_enter_no_mean():
    prediction, target = example()
    scores = per_image(prediction, target, exclude=(0, 3)).compute()
    iou = oracle_iou(prediction, target, 4)[:, 1:3]
    assert scores.image_miou == pytest.approx(np.mean([np.nanmean(row) for row in iou]))
    assert scores.class_miou == pytest.approx(np.mean([np.nanmean(column) for column in iou.T]))
    assert scores.worst_class_miou(1) == pytest.approx(scores.class_miou)


def test_29_percent_of_100_images_are_29():
    target = np.zeros((100, 1, 100), int)
    prediction = (np.arange(100) < np.arange(100)[:, None])[:, None].astype(int)  # image i has i wrong pixels
    scores = per_image(prediction, target, 1).compute()  # 0.29 * 100 is 28.999...
    assert scores.worst_image_miou(0.29) == pytest.approx(np.mean(np.arange(1, 30) / 100))


@pytest.mark.parametrize("target", [np.full((2, 3, 3), 255), np.zeros((0, 3, 3), int), np.zeros((2, 0, 3), int)])
def test_nothing_counted_gives_nan(target):
    scores = per_image(np.zeros(target.shape, int), target).compute()
    assert np.isnan(list(scores.to_dict().values())).all()
    assert "-" in str(scores)


def test_logits_score_as_their_labels():
    prediction, target = example()
    logits = torch.nn.functional.one_hot(torch.from_numpy(prediction), 4).movedim(-1, 1).half()
    assert torch.equal(per_image(logits, target).counts, per_image(prediction, target).counts)


def test_the_table_shows_the_worst_five_percent():
    images = PerImageConfusion(2)
    images.update(np.array([[[0]], [[1]]]), np.array([[[0]], [[0]]]))
    assert str(images.compute()).splitlines()[2].split() == ["worst", "5", "%", "0.00", "0.00"]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"`share` must be in \(0, 1\], got 5"):
        per_image(*example()).compute().worst_image_miou(5)
    with pytest.raises(ValueError, match=r"`target` must be \(N, H, W\) or \(H, W\)"):
        PerImageConfusion(2).update(np.zeros(3, int), np.zeros(3, int))
