import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segkit.losses import LOSSES, bce_loss, create_loss, cross_entropy_loss, dice_loss

FUNCTIONS = {"ce": cross_entropy_loss, "bce": bce_loss, "dice": dice_loss}


def example(seed=0, classes=4, size=(2, 5, 7), ignored=0.3, ignore_index=255):
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(size[0], classes, *size[1:], generator=random, dtype=torch.float64)
    target = torch.randint(classes, size, generator=random)
    target[torch.rand(size, generator=random) < ignored] = ignore_index
    return logits, target


def oracle_ce(logits, target, ignore_index, label_smoothing=0.0):
    losses = []
    for n, y, x in np.ndindex(target.shape):
        if (label := target[n, y, x]) == ignore_index:
            continue
        z = logits[n, :, y, x]
        log_probs = z - z.max() - math.log(sum(math.exp(v - z.max()) for v in z))
        losses.append(-(1 - label_smoothing) * log_probs[label] - label_smoothing * log_probs.mean())
    return sum(losses) / len(losses)


def oracle_bce(logits, target, ignore_index, label_smoothing=0.0):
    losses = []
    for n, y, x in np.ndindex(target.shape):
        if (label := target[n, y, x]) == ignore_index:
            continue
        for c, z in enumerate(logits[n, :, y, x]):
            t = (c == label) * (1 - label_smoothing) + label_smoothing / 2
            p = 1 / (1 + math.exp(-z))
            losses.append(-t * math.log(p) - (1 - t) * math.log(1 - p))
    return sum(losses) / len(losses)


def oracle_dice(logits, target, ignore_index, smooth=0.0):
    classes = logits.shape[1]
    hits, sums, support = np.zeros(classes), np.zeros(classes), np.zeros(classes)
    for n, y, x in np.ndindex(target.shape):
        if (label := target[n, y, x]) == ignore_index:
            continue
        e = np.exp(logits[n, :, y, x])
        p = e / e.sum()
        hits[label] += p[label]
        support[label] += 1
        sums += p
    dice = (2 * hits + smooth) / (sums + support + smooth)
    return (1 - dice[support > 0]).mean()


ORACLES = {"ce": oracle_ce, "bce": oracle_bce, "dice": oracle_dice}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ce", {}),
        ("ce", {"label_smoothing": 0.1}),
        ("bce", {}),
        ("bce", {"label_smoothing": 0.1}),
        ("dice", {}),
        ("dice", {"smooth": 1.0}),
    ],
)
@pytest.mark.parametrize("ignore_index", [255, 1, -100])
def test_a_loss_equals_the_sum_written_as_loops(name, options, ignore_index):
    logits, target = example(ignore_index=ignore_index)
    expected = ORACLES[name](logits.numpy(), target.numpy(), ignore_index, **options)
    assert FUNCTIONS[name](logits, target, ignore_index=ignore_index, **options).item() == pytest.approx(expected)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_equals_that_of_torch(label_smoothing):
    logits, target = example()
    ours = cross_entropy_loss(logits, target, label_smoothing=label_smoothing)
    torch.testing.assert_close(ours, F.cross_entropy(logits, target, ignore_index=255, label_smoothing=label_smoothing))


def test_dice_worked_out_by_hand():
    # Even probabilities over two classes: class 0 has TP 0.5, sums 1 + 1; class 1 the same.
    logits, target = torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]])
    assert dice_loss(logits, target).item() == pytest.approx(0.5)
    sure = torch.tensor([[[[50.0, -50.0]], [[-50.0, 50.0]]]])
    assert dice_loss(sure, target).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_ignored_pixels_equal_removed_pixels(name):
    logits, target = example(size=(1, 4, 6))
    valid = target[0] != 255
    kept_logits, kept_target = logits[0][:, valid][None, :, None], target[0][valid][None, None]
    torch.testing.assert_close(FUNCTIONS[name](logits, target), FUNCTIONS[name](kept_logits, kept_target))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e30])
def test_whatever_stands_at_ignored_pixels_changes_neither_loss_nor_gradient(name, poison):
    logits, target = example()
    poisoned = torch.where((target == 255).unsqueeze(1), poison, logits)
    results = []
    for z in (logits, poisoned):
        z = z.detach().requires_grad_()
        loss = FUNCTIONS[name](z, target)
        loss.backward()
        results.append((loss.detach(), z.grad))
    (loss, gradient), (poisoned_loss, poisoned_gradient) = results
    assert torch.equal(loss, poisoned_loss)
    assert torch.equal(gradient, poisoned_gradient)
    assert (gradient.movedim(1, -1)[target == 255] == 0).all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_all_pixels_ignored_gives_zero_with_a_graph(name):
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = FUNCTIONS[name](logits, torch.full((1, 2, 2), 255))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_gradient_is_that_of_finite_differences(name):
    logits, target = example(size=(1, 2, 3), classes=3)
    assert torch.autograd.gradcheck(lambda z: FUNCTIONS[name](z, target), logits.requires_grad_())


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(name, dtype):
    logits = torch.randn(1, 3, 300, 300).to(dtype)  # 90,000 pixels: float16 sums would overflow at 65,504
    target = torch.zeros(1, 300, 300, dtype=torch.uint8)
    half, full = FUNCTIONS[name](logits, target), FUNCTIONS[name](logits.double(), target)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(full.item(), rel=1e-4)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_any_integer_target_will_do(name, dtype):
    logits, target = example()
    assert torch.equal(FUNCTIONS[name](logits, target.to(dtype)), FUNCTIONS[name](logits, target))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_logits_of_ten_thousand_stay_finite(name):
    logits, target = example()
    z = (logits.sign() * 1e4).requires_grad_()
    loss = FUNCTIONS[name](z, target)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 3, dtype=torch.long), r"target must be \(N, H, W\)"),
        (torch.zeros(3, 2, 2), torch.zeros(2, 2, dtype=torch.long), r"target must be \(N, H, W\)"),
        (torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2), r"integer class indices or .* got torch.float32 \(1, 2, 2\)"),
        (torch.zeros(1, 3, 2, 2), torch.full((1, 2, 2), 3), "labels from 3 to 3, expected 0 to 2"),
    ],
)
def test_wrong_inputs_are_named(name, logits, target, message):
    with pytest.raises(ValueError, match=message):
        create_loss(name)(logits, target)


def test_a_combination_is_the_weighted_sum():
    logits, target = example()
    expected = 0.6 * bce_loss(logits, target) + 0.4 * dice_loss(logits, target)
    torch.testing.assert_close(create_loss({"bce": 0.6, "dice": 0.4})(logits, target), expected)


def test_an_option_reaches_the_losses_that_know_it():
    logits, target = example()
    expected = cross_entropy_loss(logits, target, label_smoothing=0.1) + dice_loss(logits, target)
    torch.testing.assert_close(create_loss({"ce": 1, "dice": 1}, label_smoothing=0.1)(logits, target), expected)


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("dise", {}, "did you mean 'dice'"),
        ({}, {}, "no loss given"),
        ({"ce": 0}, {}, "must be positive"),
        ({"dice": 1}, {"label_smoothing": 0.1}, "no option 'label_smoothing'"),
        ("ce", {"label_smoothing": 1.5}, r"in \[0, 1\]"),
    ],
)
def test_a_wrong_specification_is_named(spec, options, message):
    with pytest.raises(ValueError, match=message):
        create_loss(spec, **options)
