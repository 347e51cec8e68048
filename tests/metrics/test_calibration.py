import numpy as np
import pytest
import torch

from segkit.metrics import CalibrationError


def example(seed=0, classes=4, size=(2, 12, 15)):
    random = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(size[0], classes, *size[1:], generator=random)
    target = torch.where(
        torch.rand(size, generator=random) < 0.5, logits.argmax(1), torch.randint(classes, size, generator=random)
    )
    target[torch.rand(size, generator=random) < 0.2] = 255
    return logits, target


def calibration(prediction, target, classes=4, **options):
    metric = CalibrationError(classes, **options)
    metric.update(prediction, target)
    return metric.compute()


def oracle_ece(confidences, rights, bins):
    error = 0.0
    for m in range(bins):
        inside = [i for i, p in enumerate(confidences) if m / bins < p <= (m + 1) / bins or (m == 0 and p == 0)]
        if inside:
            confidence = sum(confidences[i] for i in inside) / len(inside)
            accuracy = sum(rights[i] for i in inside) / len(inside)
            error += len(inside) / len(confidences) * abs(confidence - accuracy)
    return error


def pixels(logits, target):
    """Lists of the probabilities (P, C) and labels (P,) of the pixels that count."""
    probs = logits.softmax(1).movedim(1, -1).reshape(-1, logits.shape[1]).double().numpy()
    labels = target.flatten().numpy()
    return probs[labels != 255], labels[labels != 255]


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_errors_equal_loops_over_bins_and_pixels(bins):
    logits, target = example()
    scores = calibration(logits, target, bins=bins)
    probs, labels = pixels(logits, target)
    assert scores.ece == pytest.approx(oracle_ece(probs.max(1), probs.argmax(1) == labels, bins), abs=1e-6)
    by_class = [oracle_ece(probs[:, c], labels == c, bins) for c in range(4)]
    assert scores.class_ece == pytest.approx(by_class, abs=1e-6)
    assert scores.static_ece == pytest.approx(np.mean(by_class), abs=1e-6)
    assert scores.ignored == int((target == 255).sum())


def test_the_reliability_diagram_equals_scikit_learn():
    curve = pytest.importorskip("sklearn.calibration").calibration_curve
    logits, target = example(size=(2, 40, 40))
    scores = calibration(logits, target, bins=10)
    probs, labels = pixels(logits, target)
    accuracy, confidence = curve(probs.argmax(1) == labels, probs.max(1), n_bins=10)
    filled = scores.share > 0
    assert scores.accuracy[filled] == pytest.approx(accuracy)
    assert scores.confidence[filled] == pytest.approx(confidence)
    assert scores.share.sum() == pytest.approx(1)


def test_the_error_of_four_pixels_worked_out_by_hand():
    probs = torch.tensor([[0.9, 0.9, 0.6, 0.6], [0.1, 0.1, 0.4, 0.4]])[:, None]  # (2, 1, 4)
    scores = calibration(probs, torch.tensor([[0, 0, 0, 1]]), 2, bins=2, from_logits=False)
    # all confidences are in the upper bin: 0.75 against 3 of 4 right
    assert scores.ece == pytest.approx(0)
    scores = calibration(probs, torch.tensor([[0, 0, 0, 1]]), 2, bins=10, from_logits=False)
    assert scores.ece == pytest.approx((2 * abs(0.9 - 1) + 2 * abs(0.6 - 0.5)) / 4)
    assert scores.class_ece.tolist() == pytest.approx([0.1, 0.1])


def test_sure_and_right_is_no_error_and_sure_and_wrong_is_one():
    logits = torch.tensor([[100.0], [-100.0]])[..., None]
    assert calibration(logits, torch.tensor([[0]]), 2).ece == 0
    assert calibration(logits, torch.tensor([[1]]), 2).ece == 1


def test_a_probability_of_zero_is_in_the_first_bin():
    probs = torch.tensor([[1.0, 0.5], [0.0, 0.5]])[:, None]
    scores = calibration(probs, torch.tensor([[0, 0]]), 2, from_logits=False)
    assert scores.class_ece.tolist() == [0.25, 0.25]


def test_probabilities_and_their_logits_score_the_same():
    logits, target = example()
    a, b = calibration(logits, target), calibration(logits.softmax(1), target, from_logits=False)
    assert b.to_dict() == pytest.approx(a.to_dict())
    assert calibration(logits.half(), target).ece == pytest.approx(a.ece, abs=2e-3)
    assert calibration(logits.to(memory_format=torch.channels_last), target.numpy()).ece == pytest.approx(a.ece)


def test_streaming_merging_and_a_saved_state_give_the_same_as_one_pass():
    logits, target = example()
    one, other = CalibrationError(4), CalibrationError(4)
    one.update(logits[0], target[0])
    other.load_state_dict(one.state_dict())
    one.reset()
    one.update(logits[1], target[1])
    other += one
    assert other.compute().to_dict() == pytest.approx(calibration(logits, target).to_dict())


def test_many_pixels_are_cut_into_blocks_without_loss():
    logits, target = example(size=(1, 600, 500))
    whole, parts = calibration(logits, target), CalibrationError(4)
    for rows in range(0, 600, 100):
        parts.update(logits[:, :, rows : rows + 100], target[:, rows : rows + 100])
    assert whole.ece == pytest.approx(parts.compute().ece)
    assert whole.share == pytest.approx(parts.compute().share)


def test_what_is_predicted_on_ignored_pixels_changes_nothing():
    logits, target = example()
    other = logits.clone()
    for value, part in zip((float("nan"), float("inf"), 1e30), (target == 255).nonzero().chunk(3), strict=True):
        n, y, x = part.T
        other[n, :, y, x] = value
    assert calibration(other, target).to_dict() == calibration(logits, target).to_dict()
    assert calibration(other, target).out_of_range == 0


def test_nan_and_no_probabilities_and_no_classes_are_counted_apart():
    probs = torch.tensor([[0.9, 0.2, float("nan"), 1.5, 0.5], [0.1, 0.8, 0.5, 0.5, -0.1]])[:, None]
    scores = calibration(probs, torch.tensor([[0, 7, 0, 0, 0]]), 2, from_logits=False)
    assert scores.out_of_range == 4
    assert scores.ece == pytest.approx(0.1)


def test_an_average_of_ones_is_a_probability():
    probs = torch.tensor([[[1 + 1e-6]], [[0.0]]])
    scores = calibration(probs, torch.tensor([[0]]), 2, from_logits=False)
    assert scores.out_of_range == 0
    assert scores.share[-1] == 1


def test_excluded_classes_enter_no_mean():
    scores = calibration(*example(), exclude=(0, 1))
    assert scores.static_ece == pytest.approx(scores.class_ece[2:].mean())


@pytest.mark.parametrize("size", [(0, 4, 4), (2, 0, 4), (1, 3, 3)])
def test_nothing_counted_gives_nan(size):
    scores = calibration(torch.zeros(size[0], 4, *size[1:]), torch.full(size, 255))
    assert np.isnan([scores.ece, scores.static_ece, *scores.share]).all()
    assert "ECE nan" in str(scores)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="must be floating, with 4 channels before"):
        calibration(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="must be floating, with 4 channels before"):
        calibration(torch.zeros(1, 2, 2, dtype=torch.int64), torch.zeros(1, 2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="`bins` must be 1 or more, got 0"):
        CalibrationError(4, bins=0)


@pytest.mark.parametrize("num_classes", [1, 2])
def test_one_channel_is_refused_since_its_softmax_is_always_1(num_classes):
    with pytest.raises(ValueError, match="`prediction` has one channel, whose softmax would always be 1"):
        CalibrationError(num_classes).update(torch.randn(1, 1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long))
