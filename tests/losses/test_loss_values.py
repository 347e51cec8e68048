"""Each loss against its formula, written as loops over pixels in numpy."""

import numpy as np
import pytest
import torch
from helpers import loss_oracles
from helpers.loss_examples import CLASSES, MAINLY_ONE_MODE, VARIANTS, as_on, build, example

REDUCED = [case for case in VARIANTS if case.values[0] in loss_oracles.SUMS]


def expected(name, logits, target, mode, ignore_index, options, reduction="mean"):
    found = list(loss_oracles.pixels(logits.numpy(), target.numpy(), mode, ignore_index))
    options = {key: value.numpy() if isinstance(value, torch.Tensor) else value for key, value in options.items()}
    if name in loss_oracles.DEPEND_ON_MULTICLASS:
        options["multiclass"] = mode == "multiclass"
    if name not in loss_oracles.SUMS:
        return loss_oracles.SCORES[name](found, **options)
    losses, total = loss_oracles.SUMS[name](found, **options)
    if reduction == "none":
        return losses
    return sum(losses.values()) / (total if reduction == "mean" else 1)


@pytest.mark.parametrize(("name", "mode", "options"), MAINLY_ONE_MODE)
def test_a_loss_is_its_formula_over_the_pixels_that_count(name, mode, options):
    logits, target = example(mode)
    loss = build(name, mode, **options)(logits, target)
    assert loss.item() == pytest.approx(expected(name, logits, target, mode, 255, options), rel=1e-6)


@pytest.mark.parametrize(("name", "mode", "options"), MAINLY_ONE_MODE)
def test_computed_as_on_a_gpu_a_loss_is_its_formula(name, mode, options):
    logits, target = example(mode)
    loss = as_on("cuda", build(name, mode, **options))(logits, target)
    assert loss.item() == pytest.approx(expected(name, logits, target, mode, 255, options), rel=1e-6)


@pytest.mark.parametrize(("name", "mode", "options"), MAINLY_ONE_MODE)
@pytest.mark.parametrize("ignore_index", [1, None])
def test_any_label_or_none_can_be_ignored(name, mode, options, ignore_index):
    logits, target = example(mode, ignored=0 if ignore_index is None else 0.3, ignore_index=ignore_index)
    loss = build(name, mode, ignore_index=ignore_index, **options)(logits, target)
    assert loss.item() == pytest.approx(expected(name, logits, target, mode, ignore_index, options), rel=1e-6)


@pytest.mark.parametrize(("name", "mode", "options"), [case for case in MAINLY_ONE_MODE if case.values[0] != "lovasz"])
def test_a_target_may_lie_between_0_and_1(name, mode, options):
    logits, target = example(mode, soft=True)
    loss = build(name, mode, **options)(logits, target)
    assert loss.item() == pytest.approx(expected(name, logits, target, mode, 255, options), rel=1e-6)


@pytest.mark.parametrize(("name", "mode", "options"), REDUCED)
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_losses_can_be_summed_or_left_as_they_are(name, mode, options, soft):
    logits, target = example(mode, soft=soft)
    single, summed = (
        build(name, mode, reduction=reduction, **options)(logits, target) for reduction in ("none", "sum")
    )
    by_pixel = expected(name, logits, target, mode, 255, options, "none")
    assert single.ndim == len(next(iter(by_pixel)))
    assert single.numel() == len(by_pixel)
    np.testing.assert_allclose([single[at] for at in by_pixel], list(by_pixel.values()), rtol=1e-6, atol=1e-12)
    assert summed.item() == pytest.approx(sum(by_pixel.values()), rel=1e-6)


@pytest.mark.parametrize(("name", "mode", "options"), MAINLY_ONE_MODE)
def test_an_absent_class_counts_as_documented(name, mode, options):
    logits, target = example(mode)
    if mode == "multilabel":
        target[:, CLASSES - 1] *= target[:, CLASSES - 1] == 255
    else:
        target[target == (CLASSES - 1 if mode == "multiclass" else 1)] = 0
    loss = build(name, mode, **options)(logits, target)
    assert loss.item() == pytest.approx(expected(name, logits, target, mode, 255, options), rel=1e-6)
