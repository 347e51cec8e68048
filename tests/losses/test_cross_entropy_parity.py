"""Cross entropy, and the losses that equal it for some options, against the functions of torch."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from helpers.loss_examples import CLASSES, WEIGHTS, example, loss_and_gradient

from segkit.losses import bce_loss, cross_entropy_loss, focal_loss, ohem_loss

CLOSE = {torch.float64: 1e-12, torch.float32: 1e-6}


def all_pairs():
    """Yield all combinations of options; those that are not slow contain each pair of values of any two options."""
    options = [0.0, 0.1, 1.0], [None, WEIGHTS, (0.0, 1.0, 3.0)], [255, 1, -100], ["mean", "sum", "none"]
    for a, b, c, d in product(range(3), repeat=4):
        values = [option[i] for option, i in zip(options, (a, b, c, d), strict=True)]
        is_fast = (a + b + c) % 3 == 0 and (a + 2 * b + d) % 3 == 0
        yield pytest.param(*values, marks=[] if is_fast else pytest.mark.slow)


@pytest.mark.parametrize(("label_smoothing", "weights", "ignore_index", "reduction"), list(all_pairs()))
@pytest.mark.parametrize("dtype", CLOSE)
def test_loss_and_gradient_of_labels_are_those_of_torch(label_smoothing, weights, ignore_index, reduction, dtype):
    logits, target = example(size=(2, 7, 9), ignore_index=ignore_index)
    logits = logits.to(dtype)
    options = {"label_smoothing": label_smoothing, "ignore_index": ignore_index, "reduction": reduction}
    weights = None if weights is None else torch.tensor(weights, dtype=dtype)
    ours = cross_entropy_loss(logits, target, class_weights=weights, **options)
    torch.testing.assert_close(
        ours, F.cross_entropy(logits, target, weights, **options), rtol=CLOSE[dtype], atol=CLOSE[dtype]
    )
    _, ours = loss_and_gradient(lambda z: cross_entropy_loss(z, target, class_weights=weights, **options).sum(), logits)
    _, theirs = loss_and_gradient(lambda z: F.cross_entropy(z, target, weights, **options).sum(), logits)
    torch.testing.assert_close(ours, theirs, rtol=CLOSE[dtype], atol=CLOSE[dtype])


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_loss_of_shares_is_that_of_torch(label_smoothing, weights, reduction):
    logits, target = example(soft=True, ignored=0)
    ours = cross_entropy_loss(
        logits, target, class_weights=weights, label_smoothing=label_smoothing, reduction=reduction
    )
    weights = None if weights is None else torch.tensor(weights, dtype=logits.dtype)
    theirs = F.cross_entropy(logits, target, weights, label_smoothing=label_smoothing, reduction=reduction)
    torch.testing.assert_close(ours, theirs)


def test_a_class_that_minus_infinity_rules_out_leaves_the_loss_that_of_torch():
    logits, target = example(ignored=0)
    logits[:, 2] = -torch.inf
    target[target == 2] = 0
    ours = loss_and_gradient(cross_entropy_loss, logits, target)
    torch.testing.assert_close(ours, loss_and_gradient(F.cross_entropy, logits, target))


@pytest.mark.parametrize("name", ["focal", "ohem"])
def test_focal_and_ohem_without_their_effect_are_the_cross_entropy(name):
    logits, target = example()
    relatives = {
        "focal": lambda z: focal_loss(z, target, gamma=0),
        "ohem": lambda z: ohem_loss(z, target, threshold=1.0, min_kept=1),
    }
    expected = loss_and_gradient(lambda z: F.cross_entropy(z, target, ignore_index=255), logits)
    torch.testing.assert_close(loss_and_gradient(relatives[name], logits), expected)


@pytest.mark.parametrize("pos_weight", [1.0, 3.0, WEIGHTS])
def test_binary_cross_entropy_is_that_of_torch(pos_weight):
    logits, target = example("multilabel", soft=True, ignored=0)
    weights = torch.tensor(pos_weight, dtype=logits.dtype).expand(CLASSES)
    theirs = F.binary_cross_entropy_with_logits(logits, target, pos_weight=weights.view(-1, 1, 1))
    pos_weight = weights if pos_weight == WEIGHTS else pos_weight
    torch.testing.assert_close(bce_loss(logits, target, mode="multilabel", pos_weight=pos_weight), theirs)


def test_binary_cross_entropy_is_that_of_two_classes_the_first_at_0():
    logits, target = example("binary")
    two = torch.cat([torch.zeros_like(logits), logits], 1)
    torch.testing.assert_close(bce_loss(logits, target, mode="binary"), cross_entropy_loss(two, target))
    single = focal_loss(logits, target, mode="binary")
    torch.testing.assert_close(single, focal_loss(two, target))
