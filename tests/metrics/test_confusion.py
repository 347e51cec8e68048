import io

import numpy as np
import pytest
import torch

from segkit.errors import UsageError
from segkit.metrics import BoundaryIoU, CalibrationError, ConfusionMatrix

NUMPY_TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")


def oracle_counts(prediction, target, classes, ignore_index):
    """(C + 2, C + 1): pixel by pixel, with a row for targets of no class and one for ignored targets."""
    counts = np.zeros((classes + 2, classes + 1), dtype=np.int64)
    for t, p in zip(target.ravel().tolist(), prediction.ravel().tolist(), strict=True):
        row = classes + 1 if t == ignore_index else t if 0 <= t < classes else classes
        counts[row, p if 0 <= p < classes else classes] += 1
    return counts


def count(prediction, target, classes=4, **options):
    confusion = ConfusionMatrix(classes, **options)
    confusion.update(prediction, target)
    return confusion


def example_logits(seed=0, classes=4, size=(3, 8, 9)):
    random = torch.Generator().manual_seed(seed)
    # Few different values, so that the largest is often not alone.
    logits = torch.randint(-3, 3, (size[0], classes, *size[1:]), generator=random).float()
    return logits, torch.randint(classes, size, generator=random)


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
    with pytest.raises(ValueError, match="`prediction` must have the target's shape"):
        ConfusionMatrix(2).update(np.zeros((2, 2), int), np.zeros((2, 3), int))
    with pytest.raises(ValueError, match="`class_names` has 1"):
        ConfusionMatrix(2, class_names=("a",))
    with pytest.raises(ValueError, match="cannot merge"):
        ConfusionMatrix(2).merge(ConfusionMatrix(3))


@pytest.mark.parametrize("dtype", NUMPY_TYPES)
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_any_integer_type_gives_the_same_counts(dtype, kind):
    prediction, target = example()
    target[target == 255] = 100  # which int8 holds
    whole = count(kind(prediction.astype(dtype)), kind(target.astype(dtype)), ignore_index=100)
    assert np.array_equal(whole.counts, oracle_counts(prediction, target, 4, 100))


def test_the_upper_half_of_uint16_is_not_negative():
    scores = count(np.zeros((1, 2), int), np.array([[65535, 0]], np.uint16), ignore_index=65535).compute()
    assert (scores.ignored, scores.out_of_range) == (1, 0)


def test_bool_maps_are_labels_0_and_1():
    assert count(np.array([[True, False]]), torch.tensor([[True, True]]), 2).matrix.tolist() == [[0, 0], [1, 1]]


def test_big_endian_labels_are_read_right():
    assert count(np.array([[1]], ">u2"), np.array([[1]], ">i4"), 3).matrix[1, 1] == 1


@pytest.mark.parametrize("classes", [1, 2, 14, 15, 126, 127, 128, 200, 254, 255, 256, 300])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int64])
def test_any_number_of_classes_fits_any_type(classes, dtype):
    limits = torch.iinfo(dtype)
    values = {-1, 0, 1, 126, 127, 128, 254, 255, classes - 1, classes, classes + 1, limits.min, limits.max}
    values = [v for v in sorted(values) if limits.min <= v <= limits.max]
    target = torch.tensor(values, dtype=dtype).repeat(len(values), 1)
    ignored = 255 if classes <= 255 else -100
    confusion = count(target.T, target, classes, ignore_index=ignored)
    expected = {}
    for t in values:
        for p in values:
            row = classes + 1 if t == ignored else t if 0 <= t < classes else classes
            cell = (row, p if 0 <= p < classes else classes)
            expected[cell] = expected.get(cell, 0) + 1
    got = {tuple(cell): int(confusion.counts[tuple(cell)]) for cell in confusion.counts.nonzero().tolist()}
    assert got == expected


@pytest.mark.parametrize("ignore_index", [None, -1, -100, 0, 2, 3, 4, 254])
@pytest.mark.parametrize("classes", [3, 300])
def test_labels_of_every_kind_land_in_their_own_cells(ignore_index, classes):
    random = np.random.default_rng(0)
    values = [-100, -1, 0, 1, 2, 3, 4, 254, 255, 256, 299, 300, 2**40]
    prediction, target = random.choice(values, (2, 40, 30))
    confusion = count(prediction, target, classes, ignore_index=ignore_index)
    expected = oracle_counts(prediction, target, classes, ignore_index)
    assert np.array_equal(confusion.counts, expected)
    scores = confusion.compute()
    assert scores.ignored == expected[classes + 1].sum()
    assert scores.out_of_range == expected[classes].sum() + expected[:classes, classes].sum()


def test_255_is_ignored_in_uint8_and_minus_1_in_int8_is_out_of_range():
    target = np.array([[255, 0]], np.uint8)
    assert count(np.zeros((1, 2), int), target).compute().ignored == 1
    scores = count(np.zeros((1, 2), int), target.view(np.int8)).compute()
    assert (scores.ignored, scores.out_of_range) == (0, 1)
    scores = count(np.zeros((1, 2), int), target, ignore_index=-1).compute()
    assert (scores.ignored, scores.out_of_range) == (0, 1)


@pytest.mark.filterwarnings("error")
def test_read_only_flipped_and_strided_arrays_are_counted_without_a_warning():
    prediction, target = example()
    prediction.flags.writeable = target.flags.writeable = False
    expected = count(prediction.copy(), target.copy()).counts
    assert torch.equal(count(prediction, target).counts, expected)
    assert torch.equal(count(prediction[:, ::-1], target[:, ::-1]).counts, expected)
    assert torch.equal(count(np.asfortranarray(prediction), target).counts, expected)
    assert torch.equal(count(prediction.T, target.T).counts, expected)


def test_the_inputs_stay_as_they_were():
    for dtype in (np.uint8, np.int32):
        prediction, target = (x.astype(dtype) for x in example())
        before = prediction.copy(), target.copy()
        for classes in (4, 300):
            count(prediction, target, classes, ignore_index=254)
        assert np.array_equal(prediction, before[0])
        assert np.array_equal(target, before[1])


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "a crop": lambda x: torch.nn.functional.pad(x, (2, 1, 3, 2), value=9.0)[..., 3:-2, 2:-1],
    "every second": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
    "float16": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "float64": lambda x: x.double(),
    "integers": lambda x: x.to(torch.int32),
    "numpy": lambda x: x.numpy(),
    "with gradient": lambda x: x.clone().requires_grad_(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_of_any_layout_and_type_count_as_their_first_largest(layout):
    logits, target = example_logits()
    prediction = logits.numpy().argmax(1)
    confusion = count(LAYOUTS[layout](logits), target)
    assert np.array_equal(confusion.counts, oracle_counts(prediction, target.numpy(), 4, 255))


def test_a_batch_equals_its_images_with_and_without_a_batch_dimension():
    logits, target = example_logits()
    whole, single, bare = count(logits, target), ConfusionMatrix(4), ConfusionMatrix(4)
    for i in range(len(logits)):
        single.update(logits[i : i + 1], target[i : i + 1])
        bare.update(logits[i], target[i])
    assert torch.equal(whole.counts, single.counts)
    assert torch.equal(whole.counts, bare.counts)


def test_logits_with_nan_are_out_of_range():
    logits, target = torch.zeros(1, 2, 1, 3), torch.zeros(1, 1, 3, dtype=torch.int64)
    logits[0, 1, 0, 0] = float("nan")
    logits[0, :, 0, 1] = float("nan")
    scores = count(logits, target, 2).compute()
    assert scores.out_of_range == 2
    assert scores.iou[0] == pytest.approx(1 / 3)


@pytest.mark.parametrize("size", [(0, 4, 4), (2, 0, 4), (0,), (0, 0)])
def test_no_pixels_count_nothing(size):
    confusion = count(np.zeros(size, np.uint8), np.zeros(size, np.uint8))
    assert confusion.counts.sum() == 0
    assert np.isnan(confusion.compute().miou)


@pytest.mark.parametrize("size", [(0, 4, 4), (2, 0, 4)])
def test_logits_without_pixels_count_nothing(size):
    assert count(torch.zeros(size[0], 4, *size[1:]), torch.zeros(size, dtype=torch.int64)).counts.sum() == 0


def test_one_pixel_of_one_class_is_right():
    scores = count(np.zeros((1, 1), int), np.zeros((1, 1), int), 1).compute()
    assert scores.miou == scores.pixel_accuracy == scores.mean_dice == 1
    assert np.isnan(scores.foreground_miou)


@pytest.mark.parametrize("num_classes", [1, 2])
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)])
def test_one_channel_is_refused_since_its_argmax_is_always_0(num_classes, shape):
    logits = torch.randn(*shape[:-2], 1, *shape[-2:])
    with pytest.raises(ValueError, match=r"`prediction` has one channel, .* pass labels"):
        count(logits, np.zeros(shape, int), num_classes)


def test_all_ignored_gives_nan_and_the_number():
    scores = count(np.zeros((3, 3), int), np.full((3, 3), 255)).compute()
    assert scores.ignored == 9
    means = [value for name, value in scores.to_dict().items()]
    assert np.isnan(means).all()


def test_what_is_predicted_on_ignored_pixels_changes_no_score():
    prediction, target = example()
    other = np.where(target == 255, 3 - prediction, prediction)
    first, second = count(prediction, target).compute(), count(other, target).compute()
    assert first.to_dict() == second.to_dict()


def oracle_scores(prediction, target, classes, ignore_index):
    """Sets of pixels for each class."""
    pixels = [i for i in range(target.size) if target.flat[i] != ignore_index and 0 <= target.flat[i] < classes]
    scores = {"iou": [], "dice": [], "precision": [], "recall": []}
    for c in range(classes):
        truth = {i for i in pixels if target.flat[i] == c}
        found = {i for i in pixels if prediction.flat[i] == c}
        both = len(truth & found)
        scores["iou"].append(both / len(truth | found) if truth | found else np.nan)
        scores["dice"].append(2 * both / (len(truth) + len(found)) if truth | found else np.nan)
        scores["precision"].append(both / len(found) if found else np.nan)
        scores["recall"].append(both / len(truth) if truth else np.nan)
    shares = [sum(target.flat[i] == c for i in pixels) / len(pixels) for c in range(classes)]
    scores |= {
        "miou": np.nanmean(scores["iou"]),
        "foreground_miou": np.nanmean(scores["iou"][1:]),
        "mean_dice": np.nanmean(scores["dice"]),
        "mean_accuracy": np.nanmean(scores["recall"]),
        "pixel_accuracy": sum(target.flat[i] == prediction.flat[i] for i in pixels) / len(pixels),
        "frequency_weighted_iou": sum(s * iou for s, iou in zip(shares, scores["iou"], strict=True) if s),
    }
    return scores


def test_scores_equal_a_count_of_pixel_sets():
    random = np.random.default_rng(3)
    target = random.choice([0, 1, 2, 4, 255, 9], (20, 20))  # class 3 only in the prediction, 5 nowhere
    prediction = random.choice([0, 1, 2, 3, 7], (20, 20))  # class 4 only in the target
    scores = count(prediction, target, 6).compute()
    for name, expected in oracle_scores(prediction, target, 6, 255).items():
        assert getattr(scores, name) == pytest.approx(expected, nan_ok=True), name
    assert scores.iou.dtype == scores.dice.dtype == np.float64


def test_scores_equal_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    prediction, target = example(seed=5, classes=7, size=(2, 30, 40))
    scores = count(prediction, target, 7).compute()
    t, p = target[target != 255], prediction[target != 255]
    assert np.array_equal(count(prediction, target, 7).matrix, metrics.confusion_matrix(t, p))
    assert scores.iou == pytest.approx(metrics.jaccard_score(t, p, average=None))
    assert scores.dice == pytest.approx(metrics.f1_score(t, p, average=None))
    assert scores.precision == pytest.approx(metrics.precision_score(t, p, average=None))
    assert scores.recall == pytest.approx(metrics.recall_score(t, p, average=None))
    assert scores.mean_accuracy == pytest.approx(metrics.balanced_accuracy_score(t, p))
    assert scores.pixel_accuracy == pytest.approx(metrics.accuracy_score(t, p))
    assert scores.frequency_weighted_iou == pytest.approx(metrics.jaccard_score(t, p, average="weighted"))


def test_excluded_classes_enter_no_mean_but_stay_in_the_counts():
    prediction, target = np.array([[0, 1, 1, 2]]), np.array([[0, 0, 1, 2]])
    scores = count(prediction, target, 3, exclude=(0, 2)).compute()
    assert scores.iou.tolist() == [0.5, 0.5, 1]
    assert scores.miou == scores.foreground_miou == scores.frequency_weighted_iou == 0.5
    assert scores.mean_dice == pytest.approx(2 / 3)
    assert scores.mean_accuracy == 1
    assert scores.pixel_accuracy == 0.75
    assert np.isnan(count(prediction, target, 3, exclude=(0, 1, 2)).compute().miou)


def test_an_inplace_sum_is_a_merge():
    prediction, target = example()
    confusion = count(prediction, target)
    same = confusion
    confusion += count(prediction, target)
    assert confusion is same
    assert torch.equal(confusion.counts, 2 * count(prediction, target).counts)


def test_a_saved_state_goes_on_where_it_was():
    prediction, target = example()
    buffer = io.BytesIO()
    torch.save(count(prediction, target).state_dict(), buffer)
    buffer.seek(0)
    confusion = count(target % 4, target)  # is replaced
    confusion.load_state_dict(torch.load(buffer, weights_only=True))
    confusion.update(prediction, target)
    assert torch.equal(confusion.counts, 2 * count(prediction, target).counts)


def test_a_state_read_earlier_does_not_change():
    prediction, target = example()
    confusion = count(prediction, target)
    state, sum_before = confusion.state_dict(), int(confusion.counts.sum())
    confusion.update(prediction, target)
    assert int(state["counts"].sum()) == sum_before
    confusion.load_state_dict(state)
    confusion.counts += 1
    assert int(state["counts"].sum()) == sum_before


def test_reset_forgets_everything():
    confusion = ConfusionMatrix(2)
    confusion.counts[0, 0] = 5
    confusion.reset()
    assert confusion.counts.sum() == 0


def test_2_to_the_24_and_one_pixels_are_counted_exactly():
    pixels = torch.zeros(2**24 + 1, dtype=torch.uint8)
    assert count(pixels, pixels, 2).matrix[0, 0] == 2**24 + 1


def test_counts_begun_in_inference_mode_go_on_outside():
    prediction, target = example()
    confusion = ConfusionMatrix(4)
    with torch.inference_mode():
        confusion.update(prediction, target)
    confusion.update(prediction, target)
    confusion.merge(confusion)
    assert torch.equal(confusion.counts, 4 * count(prediction, target).counts)


def test_deterministic_algorithms_can_be_asked_for():
    logits, target = example_logits()
    expected = count(logits, target).counts
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(count(logits, target).counts, expected)
    finally:
        torch.use_deterministic_algorithms(False)


def test_class_names_and_what_was_wrong_are_in_the_table():
    scores = count(np.array([[0, 1, 5, 0]]), np.array([[0, 0, 1, 255]]), 2, class_names=("ground", "can")).compute()
    table = str(scores)
    assert [line.split()[0] for line in table.splitlines()] == ["class", "ground", "can", "mean", "accuracy", "1"]
    assert "1 labels are not a class" in table


def test_the_flat_scores_are_plain_floats():
    flat = count(*example()).compute().to_dict()
    assert all(type(value) is float for value in flat.values())
    assert {"miou", "mean_dice", "mean_accuracy", "frequency_weighted_iou", "iou/class_3"} <= set(flat)


def test_bad_input_is_named():
    confusion, labels = ConfusionMatrix(3), np.zeros((4, 4), int)
    with pytest.raises(ValueError, match="3 channels before"):
        confusion.update(torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"`target` must be integer labels, got torch\.float32"):
        confusion.update(labels, torch.zeros(4, 4))
    with pytest.raises(ValueError, match=r"predicted labels must be integers, got torch\.float64"):
        confusion.update(np.zeros((4, 4)), labels)
    with pytest.raises(ValueError, match="cannot merge int into ConfusionMatrix of 3 classes"):
        confusion += 1
    with pytest.raises(ValueError, match=r"`state` must be counts \(5, 4\)"):
        confusion.load_state_dict(ConfusionMatrix(2).state_dict())
    with pytest.raises(ValueError, match="`num_classes` must be 1 or more"):
        ConfusionMatrix(0)
    with pytest.raises(ValueError, match=r"`exclude` must be labels in \[0, 3\), got \[3\]"):
        ConfusionMatrix(3, exclude=(1, 3))
    assert confusion.counts.sum() == 0


@pytest.mark.parametrize("metric", [ConfusionMatrix, BoundaryIoU, CalibrationError])
def test_a_class_255_is_not_ignored_silently(metric):
    with pytest.raises(UsageError, match="`ignore_index` is 255, but with 256 classes that is the label of a class"):
        metric(256)
    assert metric(256, ignore_index=None).num_classes == metric(255).num_classes + 1
