import numpy as np
import pytest
import torch

from segkit.metrics import ConfusionMatrix


def oracle(prediction, target, classes, ignore_index):
    matrix = np.zeros((classes, classes), dtype=np.int64)
    for t, p in zip(target.ravel(), prediction.ravel(), strict=True):
        if t != ignore_index:
            matrix[t, p] += 1
    return matrix


def example(seed=0, classes=4, size=(3, 8, 9)):
    random = np.random.default_rng(seed)
    target = random.integers(classes, size=size)
    target[random.random(size) < 0.2] = 255
    return random.integers(classes, size=size), target


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_counts_equal_a_loop_over_the_pixels(dtype, kind):
    prediction, target = example()
    confusion = ConfusionMatrix(4)
    confusion.update(kind(prediction.astype(dtype)), kind(target.astype(dtype)))
    assert np.array_equal(confusion.matrix, oracle(prediction, target, 4, 255))


def test_scores_worked_out_by_hand():
    confusion = ConfusionMatrix(3, class_names=("ground", "can", "cup"))
    confusion.update(np.array([[0, 0, 1, 1, 0]]), np.array([[0, 1, 1, 0, 255]]))
    scores = confusion.compute()
    assert scores.iou[:2] == pytest.approx([1 / 3, 1 / 3])
    assert np.isnan(scores.iou[2])  # neither in target nor in prediction
    assert scores.miou == pytest.approx(1 / 3)
    assert scores.pixel_accuracy == pytest.approx(0.5)
    assert scores.support.tolist() == [2, 2, 0]
    assert scores.ignored == 1


def test_a_perfect_prediction_scores_one():
    _, target = example()
    confusion = ConfusionMatrix(4)
    confusion.update(np.where(target == 255, 0, target), target)
    scores = confusion.compute()
    assert scores.miou == scores.foreground_miou == scores.pixel_accuracy == 1


def test_logits_are_taken_by_their_largest():
    prediction, target = example()
    logits = torch.nn.functional.one_hot(torch.from_numpy(prediction), 4).movedim(-1, 1).float()
    by_logits, by_labels = ConfusionMatrix(4), ConfusionMatrix(4)
    by_logits.update(logits, torch.from_numpy(target))
    by_labels.update(prediction, target)
    assert torch.equal(by_logits.counts, by_labels.counts)


def test_labels_out_of_range_never_land_in_a_cell():
    confusion = ConfusionMatrix(3)
    confusion.update(np.array([[0, 4, -1, 1]]), np.array([[7, 0, 1, -5]]))
    assert confusion.matrix.sum() == 0
    scores = confusion.compute()
    assert scores.out_of_range == 4
    assert scores.iou[0] == scores.iou[1] == 0  # a prediction out of range is a miss


def test_a_class_may_be_the_ignored_one():
    confusion = ConfusionMatrix(3, ignore_index=1)
    confusion.update(np.array([[0, 1, 1]]), np.array([[0, 1, 0]]))
    assert confusion.matrix.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]


def test_excluded_classes_are_left_out_of_the_means():
    confusion = ConfusionMatrix(2, exclude=(1,))
    confusion.update(np.array([[0, 0]]), np.array([[0, 1]]))
    assert confusion.compute().miou == pytest.approx(0.5)


def test_streaming_equals_one_pass_and_merging():
    prediction, target = example()
    whole, streamed, other = ConfusionMatrix(4), ConfusionMatrix(4), ConfusionMatrix(4)
    whole.update(prediction, target)
    streamed.update(prediction[0], target[0])
    other.update(prediction[1:], target[1:])
    streamed.merge(other)
    assert torch.equal(whole.counts, streamed.counts)
    streamed.reset()
    assert streamed.counts.sum() == 0


def test_a_cell_beyond_float32_stays_exact():
    confusion = ConfusionMatrix(2)
    confusion.counts[0, 0] = 2**40
    confusion.update(np.array([[0]]), np.array([[0]]))
    assert confusion.matrix[0, 0] == 2**40 + 1


def test_nothing_counted_gives_nan():
    scores = ConfusionMatrix(2).compute()
    assert np.isnan([scores.miou, scores.foreground_miou, scores.pixel_accuracy]).all()


def test_the_table_names_the_classes_and_marks_absent_ones():
    confusion = ConfusionMatrix(2, class_names=("ground", "can"))
    confusion.update(np.array([[0]]), np.array([[0]]))
    table = str(confusion.compute())
    assert "ground        100.00    100.00" in table
    assert table.splitlines()[2].split() == ["can", "-", "0.00"]


def test_flat_floats_for_a_logger():
    confusion = ConfusionMatrix(2, class_names=("ground", "can"))
    confusion.update(np.array([[0, 1]]), np.array([[0, 1]]))
    assert confusion.compute().to_dict()["iou/can"] == 1.0


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match="prediction must have the target's shape"):
        ConfusionMatrix(2).update(np.zeros((2, 2), int), np.zeros((2, 3), int))
    with pytest.raises(ValueError, match="class_names has 1"):
        ConfusionMatrix(2, class_names=("a",))
    with pytest.raises(ValueError, match="cannot merge"):
        ConfusionMatrix(2).merge(ConfusionMatrix(3))
