"""The sums of the softmax: the CPU kernel and its blocks, the plain operations of other devices, and sharing."""

import math
from collections import Counter

import pytest
import torch
from helpers.loss_examples import (
    MAINLY_ONE_MODE,
    as_on,
    build,
    example,
    ignored_entries,
    loss_and_gradient,
)
from torch.utils._python_dispatch import TorchDispatchMode

from segkit.errors import UsageError
from segkit.losses import LOSSES, BCELoss, CrossEntropyLoss, DiceLoss, WeightedSum, create_loss
from segkit.losses._blocks import blocks
from segkit.losses._inputs import Counts, Inputs
from segkit.losses._softmax import NOTHING, PlainTerms, device_traits
from segkit.losses._softmax_cpu import SoftmaxTerms, softmax_terms
from segkit.testing import check_loss

SOFTMAX_SUM = {"ce": 0.5, "dice": 0.2, "jaccard": 0.1, "focal": 0.1, "mcc": 0.05, "ohem": 0.05}
OF_SOFTMAX = [case for case in MAINLY_ONE_MODE if case.values[1] == "multiclass"]
SIZE = (2, 5, 520)  # Each image has two blocks of 1024 pixels and a smaller one.
in_blocks = pytest.mark.parametrize("block_values", [1, 1 << 20], ids=["many-blocks", "one-block"])


def at(logits, pixel, value):
    logits = logits.clone()
    logits[1, 1, 0, pixel] = value
    return logits


def unchanged(logits, target):
    return logits


def nan_at_ignored(logits, target):
    return torch.where(ignored_entries(logits, target), math.nan, logits)


def minus_infinity_at_ignored_in_one_block(logits, target):
    where = ignored_entries(logits, target).clone()
    where[0], where[:, :, :4] = False, False
    return torch.where(where, -math.inf, logits)


def large_in_one_block(logits, target):
    return at(logits, 7, 5000.0)


def small_in_one_block(logits, target):
    return logits - 5000 * (torch.arange(SIZE[1]) == 3).view(-1, 1)


def nearly_too_small(logits, target):  # float32 has few digits left for exp(-95).
    return logits - 95


def nearly_too_large(logits, target):
    return logits + 80


CHANGES = [
    unchanged,
    nan_at_ignored,
    minus_infinity_at_ignored_in_one_block,
    large_in_one_block,
    small_in_one_block,
    nearly_too_small,
    nearly_too_large,
]


@in_blocks
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("ignored", [0.3, 0.0])
@pytest.mark.parametrize("term", SoftmaxTerms._fields)
def test_every_term_of_the_kernel_and_its_gradient_are_those_of_plain_operations(term, change, ignored, block_values):
    logits, target = example(size=SIZE, ignored=ignored)
    logits, valid = change(logits, target).flatten(2), (target != 255).flatten(1)
    labels, valid = target.where(target != 255, 0).flatten(1), valid if ignored else None

    def kernel_terms(logits, labels, valid):
        return softmax_terms(logits, target.flatten(1), 255 if ignored else None, block_values)

    def plain_terms(logits, labels, valid):
        ignored = NOTHING if valid is None else 255
        return PlainTerms(logits, labels if valid is None else target.flatten(1), valid, torch.float64, ignored)

    grad = torch.randn(getattr(plain_terms(logits, labels, valid), term).shape, dtype=torch.float64)
    got, expected = (
        loss_and_gradient(lambda z, f=f: (getattr(f(z, labels, valid), term) * grad).sum(), logits)
        for f in (kernel_terms, plain_terms)
    )
    torch.testing.assert_close(got, expected)


@in_blocks
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_lower_precision_a_sum_of_losses_is_that_of_float64(change, dtype, block_values):
    logits, target = example(size=SIZE)
    logits, loss = change(logits, target).to(dtype), create_loss(SOFTMAX_SUM, label_smoothing=0.1)

    def summed(logits, target):
        traits = device_traits("cpu")._replace(block_values=block_values)
        inputs = Inputs(logits, target, "multiclass", 255, traits=traits)
        return sum(loss.weights[name] * part.evaluate(inputs) for name, part in loss.losses.items())

    got, gradient = loss_and_gradient(summed, logits, target)
    expected, expected_gradient = loss_and_gradient(loss, logits.double(), target)
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)
    scale = expected_gradient.abs().max()
    torch.testing.assert_close(gradient.double() / scale, expected_gradient / scale, rtol=0.01, atol=1e-3)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_over_many_blocks_is_that_of_one(name):
    logits, target = example(size=SIZE)
    many, one = (as_on("cpu", build(name), block_values=values) for values in (1, 1 << 30))
    torch.testing.assert_close(loss_and_gradient(many, logits, target), loss_and_gradient(one, logits, target))


@pytest.mark.parametrize("name", ["ce", "bce"])
def test_the_traits_of_a_device_set_the_size_of_its_blocks(name):
    many, one = (
        operations(as_on("cpu", build(name), block_values=values), *example(size=SIZE)) for values in (1, 1 << 30)
    )
    assert many.total() > 2 * one.total()


@pytest.mark.parametrize(("pixels", "number"), [(1023, 1), (1024, 1), (1025, 2), (2048, 2), (2049, 3), (0, 0)])
def test_blocks_cover_every_pixel_once(pixels, number):
    seen = torch.zeros(2, 3, pixels)
    found = blocks(1, seen)
    for (part,) in found:
        part += 1
    assert (seen == 1).all()
    assert len(found) == 2 * number


def with_nothing_ignored(logits, target):
    return logits, target.where(target != 255, 0)


def with_all_ignored(logits, target):
    return logits, torch.full_like(target, 255)


def with_infinity_at_ignored(logits, target):
    return torch.where(ignored_entries(logits, target), math.inf, logits), target


def with_nan_at_all_ignored(logits, target):
    return logits * math.nan, torch.full_like(target, 255)


def with_a_class_ruled_out(logits, target):
    logits = logits.clone()
    logits[:, 1] = -math.inf
    return logits, target.where(target != 1, 0)


@pytest.mark.parametrize(("name", "mode", "options"), OF_SOFTMAX)
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(with_nothing_ignored, marks=pytest.mark.slow),
        pytest.param(with_all_ignored, marks=pytest.mark.slow),
        with_infinity_at_ignored,
        with_nan_at_all_ignored,
    ],
)
def test_computed_as_on_a_gpu_a_loss_and_its_gradient_are_those_of_the_cpu(name, mode, options, change):
    inputs, loss = change(*example()), build(name, mode, **options)
    got, expected = loss_and_gradient(as_on("cuda", loss), *inputs), loss_and_gradient(loss, *inputs)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
    assert (got[1][ignored_entries(*inputs)] == 0).all()


@pytest.mark.parametrize("name", ["ce", "dice", "focal", "mcc"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_computed_as_on_a_gpu_a_pixel_that_is_not_finite_spoils_the_loss_as_on_the_cpu(name, value):
    logits, target = example(ignored=0)
    logits[0, 1, 2, 3] = value
    target[0, 2, 3] = 0
    got, expected = (loss_and_gradient(loss, logits, target) for loss in (as_on("cuda", build(name)), build(name)))
    torch.testing.assert_close(got, expected, equal_nan=True)
    assert got[0].isfinite() == (value == -math.inf)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "bce"])
def test_computed_as_on_a_gpu_a_class_can_be_ruled_out(name):
    inputs, loss = with_a_class_ruled_out(*example()), build(name)
    got, expected = loss_and_gradient(as_on("cuda", loss), *inputs), loss_and_gradient(loss, *inputs)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_computed_as_on_a_gpu_a_loss_conforms(name):
    check_loss(as_on("cuda", build(name)), num_classes=3)


@pytest.mark.parametrize(("name", "mode", "options"), [case for case in OF_SOFTMAX if case.values[0] != "lovasz"])
def test_computed_as_on_a_gpu_gradients_are_those_of_finite_differences(name, mode, options):
    logits, target = example(size=(2, 2, 2), ignored=0.2)
    loss = as_on("cuda", build(name, mode, **options))
    assert torch.autograd.gradcheck(lambda z: loss(z, target), logits.requires_grad_(), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda z: loss(z, target), logits, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_computed_as_on_a_gpu_half_precision_costs_what_the_same_numbers_cost_in_float64(dtype):
    logits, target = example(size=(2, 32, 32))
    for name in SOFTMAX_SUM:
        loss = as_on("cuda", build(name))
        got, gradient = loss_and_gradient(loss, logits.to(dtype), target)
        expected, expected_gradient = loss_and_gradient(loss, logits.to(dtype).double(), target)
        assert (got.dtype, gradient.dtype) == (torch.float32, dtype)
        assert got.item() == pytest.approx(expected.item(), rel=1e-4)
        scale = expected_gradient.abs().max()
        torch.testing.assert_close(gradient.double() / scale, expected_gradient / scale, rtol=0.01, atol=2e-3)


def test_computed_as_on_a_gpu_sums_over_a_large_image_are_exact():
    logits = torch.zeros(1, 2, 512, 512)
    logits[:, 0] = 7.3
    target = torch.zeros(1, 512, 512, dtype=torch.long)
    counts = Counts(*Inputs(logits, target, "multiclass", 255, traits=device_traits("cuda")).counts())
    expected = 512 * 512 * logits[0, :, 0, 0].double().softmax(0)
    torch.testing.assert_close(counts.prob_sum[0], expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(counts.true_positive[0, 0], expected[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_computed_as_on_a_gpu_a_label_outside_the_classes_is_an_error(name):
    logits, target = example()
    target[0, 0, 0] = 3
    with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
        as_on("cuda", build(name))(logits, target)


class Operations(TorchDispatchMode):
    """Count the calls of every operation, also in the backward pass."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls[str(function)] += 1
        return function(*args, **(kwargs or {}))


def operations(loss, logits, target):
    with Operations() as operations:
        loss_and_gradient(loss, logits, target)
    return operations.calls


# Operations of the forward and backward pass that start work on a GPU; most steps of a small batch wait for these.
@pytest.mark.parametrize(
    ("name", "options", "most"),
    [
        ("ce", {}, 13),
        ("ce", {"label_smoothing": 0.1}, 22),
        ("bce", {}, 20),
        ("dice", {}, 42),
        ("focal", {}, 32),
        ("lovasz", {}, 74),
        ("ohem", {}, 24),
    ],
)
def test_on_a_gpu_a_loss_takes_few_operations(name, options, most):
    free = ("view", "alias", "detach", "expand", "squeeze", "transpose", "slice", "unbind", "empty", "promote_types")
    calls = operations(as_on("cuda", build(name, **options)), *example())
    assert sum(number for call, number in calls.items() if not any(name in call for name in free)) <= most


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [(0, 4, 5), (2, 0, 5)], ids=["no-images", "no-pixels"])
def test_computed_as_on_a_gpu_the_loss_of_no_pixels_is_0(name, size):
    loss, gradient = loss_and_gradient(as_on("cuda", build(name)), *example(size=size, ignored=0))
    assert loss == 0
    assert gradient.shape == (size[0], 3, *size[1:])


@pytest.mark.parametrize("mode", ["multiclass", "multilabel"])
@pytest.mark.parametrize("per_image", [False, True])
def test_on_a_gpu_lovasz_in_groups_of_classes_is_that_of_all_at_once(mode, per_image):
    inputs, loss = example(mode, classes=5), build("lovasz", mode, per_image=per_image)
    two_classes = 2 * inputs[0][:, 0].numel()
    expected = loss_and_gradient(as_on("cuda", loss), *inputs)
    torch.testing.assert_close(loss_and_gradient(as_on("cuda", loss, sort_values=two_classes), *inputs), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_a_gpu_is_never_waited_for(name):
    calls = operations(as_on("cuda", build(name)), *example())
    reading = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal.default")
    assert not [call for call in calls if any(name in call for name in reading)]
    assert any("_local_scalar_dense" in call for call in operations(build(name), *example()))  # A CPU is read.


def test_on_a_gpu_losses_of_the_same_inputs_share_one_softmax():
    def total(logits, target):
        inputs = Inputs(logits, target, "multiclass", 255, traits=device_traits("cuda"))
        return sum(weight * build(name).evaluate(inputs) for name, weight in SOFTMAX_SUM.items())

    calls = operations(total, *example())
    assert calls["aten._log_softmax.default"] == calls["aten._softmax.default"] == 1
    assert calls["aten.exp.default"] == 0
    inputs = example()
    torch.testing.assert_close(loss_and_gradient(total, *inputs), loss_and_gradient(create_loss(SOFTMAX_SUM), *inputs))


def test_on_a_gpu_the_cross_entropy_makes_no_probabilities():
    calls = operations(as_on("cuda", build("ce")), *example())
    assert calls["aten._log_softmax.default"] == calls["aten._log_softmax_backward_data.default"] == 1
    assert not [call for call in calls if "aten._softmax" in call or "aten.exp." in call]


def softmaxes(loss, logits, target):
    """Return how often the CPU kernel computed exp of all logits, forward and backward."""
    return operations(loss, logits, target)["aten.exp.out"]


def test_a_sum_of_losses_takes_one_softmax():
    logits, target = example()
    assert softmaxes(create_loss(SOFTMAX_SUM), logits, target) == softmaxes(create_loss("dice"), logits, target) > 0
    loss, gradient = loss_and_gradient(create_loss(SOFTMAX_SUM), logits, target)
    singles = [loss_and_gradient(create_loss(name), logits, target) for name in SOFTMAX_SUM]
    weights = SOFTMAX_SUM.values()
    torch.testing.assert_close(loss, sum(w * single for w, (single, _) in zip(weights, singles, strict=True)))
    torch.testing.assert_close(gradient, sum(w * single for w, (_, single) in zip(weights, singles, strict=True)))


def test_losses_that_ignore_different_labels_share_nothing():
    logits, target = example()
    one, other = CrossEntropyLoss(ignore_index=255), DiceLoss(ignore_index=1)
    with pytest.raises(UsageError, match="expected 0 to 2 or ignore_index=1"):
        WeightedSum({"ce": one, "dice": other}, {"ce": 1, "dice": 1})(logits, target)
    target[target == 255] = 0
    total = WeightedSum({"ce": one, "dice": other}, {"ce": 1, "dice": 2})
    assert softmaxes(total, logits, target) == 2 * softmaxes(one, logits, target)
    torch.testing.assert_close(total(logits, target), one(logits, target) + 2 * other(logits, target))


def test_a_loss_of_ones_own_can_be_summed_with_ours():
    logits, target = example()
    total = WeightedSum({"bce": BCELoss(), "own": torch.nn.CrossEntropyLoss(ignore_index=255)}, {"bce": 1, "own": 2})
    torch.testing.assert_close(
        total(logits, target), BCELoss()(logits, target) + 2 * CrossEntropyLoss()(logits, target)
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("name", "mode", "options"), MAINLY_ONE_MODE)
def test_on_a_real_gpu_a_loss_and_its_gradient_are_those_of_the_cpu(name, mode, options):
    logits, target = example(mode, (2, 48, 64))
    logits = torch.where(ignored_entries(logits, target), math.nan, logits)
    loss = build(name, mode, **options)
    expected = loss_and_gradient(loss, logits, target)
    got = loss_and_gradient(loss.cuda(), logits.cuda(), target.cuda())
    torch.testing.assert_close([x.cpu() for x in got], list(expected), rtol=1e-6, atol=1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", [*SOFTMAX_SUM, "sum"])
def test_on_a_real_gpu_in_half_precision_nothing_is_waited_for(name):
    logits, target = (x.cuda() for x in example(size=(2, 48, 64)))
    loss = create_loss(SOFTMAX_SUM if name == "sum" else name)
    expected = loss_and_gradient(loss, logits.half().double(), target)
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = loss_and_gradient(loss, logits.half(), target)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(got[0].double(), expected[0], rtol=1e-4, atol=0)
    scale = expected[1].abs().max()
    torch.testing.assert_close(got[1].double() / scale, expected[1] / scale, rtol=0.01, atol=2e-3)
