"""Ignored pixels change nothing, in every loss, mode and option."""

import math

import pytest
import torch
from helpers.loss_examples import (
    DEFAULTS,
    MAINLY_ONE_MODE,
    ONE_MODE,
    build,
    example,
    ignored_entries,
    loss_and_gradient,
)

from segkit.errors import UsageError
from segkit.losses import LOSSES, create_loss, dice_loss
from segkit.testing import check_loss

SOFT_TARGETS = [case for case in MAINLY_ONE_MODE if case.values[0] != "lovasz"]


@pytest.mark.parametrize(("name", "mode", "options"), [case for case in ONE_MODE if case.values[2]])
def test_with_any_options_a_loss_conforms(name, mode, options):
    check_loss(build(name, mode, **options), num_classes=3, mode=mode)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_class_255_is_not_ignored_silently(name):
    torch.manual_seed(0)
    logits, target = torch.randn(1, 300, 2, 3), torch.tensor([[[0, 255, 299], [255, 7, 255]]])
    with pytest.raises(UsageError, match="`ignore_index` is 255, but with 300 classes that is the label of a class"):
        LOSSES[name]()(logits, target)
    for ignored in (None, -100):
        assert LOSSES[name](ignore_index=ignored)(logits, target).isfinite()


@pytest.mark.parametrize(("name", "mode", "options"), MAINLY_ONE_MODE)
def test_logits_at_ignored_entries_change_neither_loss_nor_gradient(name, mode, options):
    logits, target = example(mode)
    ignored = ignored_entries(logits, target)
    loss, gradient = loss_and_gradient(build(name, mode, **options), logits, target)
    assert (gradient[ignored] == 0).all()
    assert (gradient[~ignored] != 0).any()
    for poison in (math.nan, math.inf, -math.inf, 1e30):
        poisoned = loss_and_gradient(build(name, mode, **options), torch.where(ignored, poison, logits), target)
        torch.testing.assert_close((loss, gradient), poisoned, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "mode", "options"), SOFT_TARGETS)
def test_soft_targets_can_be_ignored_too(name, mode, options):
    logits, target = example(mode, soft=True)
    ignored = ignored_entries(logits, target)
    loss, gradient = loss_and_gradient(build(name, mode, **options), logits, target)
    poisoned = loss_and_gradient(build(name, mode, **options), torch.where(ignored, math.nan, logits), target)
    torch.testing.assert_close((loss, gradient), poisoned, rtol=1e-9, atol=1e-12)
    assert (gradient[ignored] == 0).all()


@pytest.mark.parametrize(("name", "mode"), [case for case in DEFAULTS if case.values[0] in ("ce", "bce", "focal")])
def test_unreduced_losses_are_0_where_ignored_and_nowhere_else(name, mode):
    logits, target = example(mode)
    losses = build(name, mode, reduction="none")(logits, target)
    assert losses.shape == target.shape
    assert torch.equal(losses == 0, target == 255)


@pytest.mark.parametrize("ignore_index", [1, 255, -100])
def test_each_loss_of_a_sum_drops_the_ignored_pixels(ignore_index):
    loss = create_loss({"ce": 0.5, "bce": 0.2, "dice": 0.3, "lovasz": 0.1}, ignore_index=ignore_index)
    check_loss(loss, ignore_index=ignore_index)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "lovasz"])
@pytest.mark.parametrize("ignore_index", [0, 1])
def test_shares_are_ignored_where_all_classes_hold_the_value(name, ignore_index):
    logits, target = example()
    shares = torch.nn.functional.one_hot(target.where(target != 255, 0), 3).movedim(-1, 1).double()
    shares = shares.masked_fill(ignored_entries(logits, target), ignore_index)
    torch.testing.assert_close(build(name, ignore_index=ignore_index)(logits, shares), build(name)(logits, target))


def test_a_value_that_the_target_cannot_hold_ignores_nothing():
    logits, target = example(ignored=0)
    target[0, 0, 0] = 2
    wrapped = 2 - 256  # In uint8 this wraps to 2.
    torch.testing.assert_close(
        dice_loss(logits, target.to(torch.uint8), ignore_index=wrapped), dice_loss(logits, target, ignore_index=None)
    )


def test_without_an_ignore_index_255_is_a_wrong_label():
    logits, target = example()
    with pytest.raises(UsageError, match="labels from 0 to 255, expected 0 to 2 or ignore_index=None"):
        dice_loss(logits, target, ignore_index=None)
