"""Saturated, empty, single, huge and half-precision inputs."""

import math

import pytest
import torch
from helpers.loss_examples import (
    DEFAULTS,
    MAINLY_DEFAULTS,
    MAINLY_ONE_MODE,
    ONE_MODE,
    as_on,
    build,
    example,
    loss_and_gradient,
)
from torch.utils._python_dispatch import TorchDispatchMode

from segkit.losses import (
    LOSSES,
    cross_entropy_loss,
    dice_loss,
    focal_loss,
    mcc_loss,
    tversky_loss,
)
from segkit.losses._inputs import Counts, Inputs


class Made(TorchDispatchMode):
    """Record the type and size of every tensor that an operation makes."""

    def __init__(self):
        super().__init__()
        self.tensors = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.tensors += [
            (x.dtype, x.numel())
            for x in (out if isinstance(out, tuple | list) else [out])
            if isinstance(x, torch.Tensor)
        ]
        return out


def sure(target, mode, classes=3, size=1e4):
    """Return logits of a prediction that is right at every pixel, with probabilities of 0 and 1."""
    if mode == "multiclass":
        target = torch.nn.functional.one_hot(target.clamp_max(classes - 1), classes).movedim(-1, 1)
    elif mode == "binary":
        target = target.unsqueeze(1)
    return size * (2.0 * (target == 1) - 1)


@pytest.mark.parametrize(("name", "mode"), DEFAULTS)
def test_a_sure_and_right_prediction_costs_nothing_and_a_wrong_one_much(name, mode):
    _, target = example(mode)
    right = sure(target, mode)
    assert build(name, mode)(right, target).item() == pytest.approx(0, abs=1e-4)
    assert build(name, mode)(-right, target).item() > 0.5


@pytest.mark.parametrize(("name", "mode", "options"), MAINLY_ONE_MODE)
def test_a_saturated_prediction_has_a_finite_loss_and_gradient(name, mode, options):
    _, target = example(mode)
    for size in (20, 1e4, 1e30, -20, -1e4, -1e30):
        loss, gradient = loss_and_gradient(build(name, mode, **options), sure(target, mode, size=size), target)
        assert loss.isfinite(), size
        assert gradient.isfinite().all(), size


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "bce"])
def test_minus_infinity_rules_a_class_out(name):
    logits, target = example()
    target[target == 1] = 0
    without = torch.stack([logits[:, 0], logits[:, 2]], 1), torch.where(target == 2, 1, target)
    logits[:, 1] = -math.inf
    loss, gradient = loss_and_gradient(build(name), logits, target)
    expected, expected_gradient = loss_and_gradient(build(name), *without)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient[:, [0, 2]], expected_gradient)
    assert (gradient[:, 1] == 0).all()


@pytest.mark.parametrize("level", [-8.0, -20.0, -40.0, -100.0, 40.0])
def test_a_constant_prediction_has_no_correlation(level):
    target = (torch.arange(64).view(1, 8, 8) < 32).long()
    loss, gradient = loss_and_gradient(lambda z: mcc_loss(z, target, mode="binary"), torch.full((1, 1, 8, 8), level))
    assert loss.item() == pytest.approx(1, abs=1e-4)
    assert (gradient[0, 0][target[0] == 1] <= 0).all()


@pytest.mark.parametrize("pixels", [4, 50, 1000])
def test_the_correlation_of_a_rare_class_in_float32_is_that_of_float64(pixels):
    target = (torch.arange(512 * 512) < pixels).long().view(1, 512, 512)
    logits = torch.randn(1, 2, 512, 512, generator=torch.Generator().manual_seed(0)) / 2
    logits[:, 0] += 9
    got, gradient = loss_and_gradient(lambda z: mcc_loss(z, target), logits)
    expected, expected_gradient = loss_and_gradient(lambda z: mcc_loss(z, target), logits.double())
    assert got.item() == pytest.approx(expected.item(), abs=2e-3)
    error = (gradient - expected_gradient).norm() / expected_gradient.norm()
    assert error < 0.1  # 1 - p has few digits left if p is nearly 1.


def test_a_class_that_fills_the_image_has_no_correlation_to_count():
    loss, gradient = loss_and_gradient(
        lambda z: mcc_loss(z, torch.zeros(1, 4, 4, dtype=torch.long)), torch.randn(1, 3, 4, 4)
    )
    assert loss == 0
    assert (gradient == 0).all()


def test_sums_over_a_large_image_are_exact():
    logits = torch.zeros(1, 2, 512, 512)
    logits[:, 0] = 7.3
    counts = Counts(*Inputs(logits, torch.zeros(1, 512, 512, dtype=torch.long), "multiclass", 255).counts())
    expected = 512 * 512 * logits[0, :, 0, 0].double().softmax(0)
    torch.testing.assert_close(counts.prob_sum[0], expected, rtol=1e-6, atol=0)


def test_where_no_pixel_is_of_a_class_with_weight_smoothing_costs_nothing():
    weights, target = torch.tensor([0.0, 1.0, 1.0]), torch.zeros(2, 8, 8, dtype=torch.long)
    smooth = cross_entropy_loss(torch.randn(2, 3, 8, 8), target, class_weights=weights, label_smoothing=0.1)
    assert smooth == 0


@pytest.mark.parametrize(("name", "mode", "options"), MAINLY_DEFAULTS)
def test_a_device_without_float64_has_the_same_losses(name, mode, options):
    logits, target = example(mode)
    loss = build(name, mode, **options)
    expected = loss(logits.float(), target)
    with Made() as made:
        got = as_on("mps", loss)(logits.float(), target)
    assert not any(dtype == torch.float64 for dtype, _ in made.tensors)
    assert got.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "mode", "options"), MAINLY_DEFAULTS)
@pytest.mark.parametrize("size", [(0, 4, 5), (2, 0, 5)], ids=["no-images", "no-pixels"])
def test_without_pixels_the_loss_is_0_with_a_graph(name, mode, options, size):
    logits, target = example(mode, size, ignored=0)
    loss, gradient = loss_and_gradient(build(name, mode, **options), logits, target)
    assert loss == 0
    assert gradient.shape == logits.shape


@pytest.mark.parametrize("name", LOSSES)
def test_one_channel_is_refused_since_its_softmax_teaches_nothing(name):
    with pytest.raises(ValueError, match=r'logits of one channel .* use `mode="binary"`'):
        build(name)(torch.randn(1, 1, 3, 3), torch.zeros(1, 3, 3, dtype=torch.long))


@pytest.mark.parametrize(("name", "mode", "options"), ONE_MODE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_costs_what_the_same_numbers_cost_in_float64(name, mode, options, dtype):
    logits, target = example(mode, (2, 32, 32))
    half = logits.to(dtype)
    loss, gradient = loss_and_gradient(build(name, mode, **options), half, target)
    expected, expected_gradient = loss_and_gradient(build(name, mode, **options), half.double(), target)
    assert (loss.dtype, gradient.dtype) == (torch.float32, dtype)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    scale = expected_gradient.abs().max()
    torch.testing.assert_close(gradient.double() / scale, expected_gradient / scale, rtol=0.01, atol=2e-3)


def test_more_pixels_than_float32_can_count_are_counted():
    pixels = 17 * 2**20  # A sum of ones in float32 stops at 2^24.
    logits, target = torch.zeros(1, 2, 1).expand(1, 2, pixels), torch.zeros(1, pixels, dtype=torch.uint8)
    assert dice_loss(logits, target).item() == pytest.approx(1 / 3, rel=1e-5)  # 1 - 2 (P / 2) / (P / 2 + P)


@pytest.mark.parametrize("compiled", [False, True])
def test_small_steps_are_not_lost_in_large_sums(compiled):
    pixels = 2**21  # p is 1 in the first half and 0.01, less than half a digit of the sum of the first, in the second.
    logits = torch.zeros(1, 2, pixels)
    logits[:, 0, : pixels // 2], logits[:, 0, pixels // 2 :] = 20, math.log(0.01 / 0.99)
    target = torch.zeros(1, pixels, dtype=torch.uint8)
    loss = torch.compile(dice_loss, backend="eager") if compiled else dice_loss
    assert loss(logits, target).item() == pytest.approx(1 - 2 * 0.505 / (0.505 + 1), rel=1e-4)


@pytest.mark.parametrize("gamma", [0.25, 0.5, 0.75])
def test_a_gamma_below_1_has_no_infinite_slope(gamma):
    _, target = example(ignored=0)
    right = sure(target, "multiclass")
    for loss in (
        lambda z: focal_loss(z, target, gamma=gamma),
        lambda z: tversky_loss(z, target, gamma=1 / gamma),
    ):
        value, gradient = loss_and_gradient(loss, right)
        assert value.item() == pytest.approx(0, abs=0.02)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_no_one_hot_target_is_made_of_labels(name):
    logits, target = example(size=(1, 8, 8))
    with Made() as made:
        loss_and_gradient(build(name), logits, target)
    integers = [numel for dtype, numel in made.tensors if not dtype.is_floating_point]
    assert integers
    assert max(integers) <= target.numel()
