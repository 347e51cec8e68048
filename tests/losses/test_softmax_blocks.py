"""The softmax in blocks: what it gives does not depend on where one ends, and losses share it."""

import math

import pytest
import torch
from helpers.loss_examples import example, ignored_entries, loss_and_gradient

from segkit.losses import LOSSES, BCELoss, CrossEntropyLoss, DiceLoss, WeightedSum, _blocks, _inputs, create_loss
from segkit.losses._softmax import SoftmaxTerms, _plain_terms, softmax_terms

SOFTMAX_SUM = {"ce": 0.5, "dice": 0.2, "jaccard": 0.1, "focal": 0.1, "mcc": 0.05, "ohem": 0.05}
SIZE = (2, 5, 520)  # two blocks of 1024 pixels and a rest, in each image


@pytest.fixture(params=[1, 1 << 20], ids=["many-blocks", "one-block"])
def blocks(request, monkeypatch):
    monkeypatch.setattr(_blocks, "BLOCK_VALUES", request.param)


def at(logits, pixel, value):
    logits = logits.clone()
    logits[1, 1, 0, pixel] = value
    return logits


def harmless(logits, target):
    return logits


def poisoned(logits, target):
    return torch.where(ignored_entries(logits, target), math.nan, logits)


def poisoned_in_one_block(logits, target):
    where = ignored_entries(logits, target).clone()
    where[0], where[:, :, :4] = False, False
    return torch.where(where, -math.inf, logits)


def large_in_one_block(logits, target):
    return at(logits, 7, 5000.0)


def small_in_one_block(logits, target):
    return logits - 5000 * (torch.arange(SIZE[1]) == 3).view(-1, 1)


def nearly_too_small(logits, target):  # float32 has few digits left for exp(-95)
    return logits - 95


def nearly_too_large(logits, target):
    return logits + 80


CHANGES = [
    harmless,
    poisoned,
    poisoned_in_one_block,
    large_in_one_block,
    small_in_one_block,
    nearly_too_small,
    nearly_too_large,
]


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("ignored", [0.3, 0.0])
@pytest.mark.parametrize("term", SoftmaxTerms._fields)
def test_every_term_and_its_gradient_are_those_of_the_plain_softmax(term, change, ignored):
    logits, target = example(size=SIZE, ignored=ignored)
    logits, valid = change(logits, target).flatten(2), (target != 255).flatten(1)
    labels, valid = target.where(target != 255, 0).flatten(1), valid if ignored else None
    pull = torch.randn(getattr(_plain_terms(logits, labels, valid), term).shape, dtype=torch.float64)
    got, expected = (
        loss_and_gradient(lambda z, f=f: (getattr(f(z, labels, valid), term) * pull).sum(), logits)
        for f in (softmax_terms, _plain_terms)
    )
    torch.testing.assert_close(got, expected)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_lower_precision_a_sum_of_losses_is_that_of_float64(change, dtype):
    logits, target = example(size=SIZE)
    logits, loss = change(logits, target).to(dtype), create_loss(SOFTMAX_SUM, label_smoothing=0.1)
    got, gradient = loss_and_gradient(loss, logits, target)
    expected, expected_gradient = loss_and_gradient(loss, logits.double(), target)
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)
    scale = expected_gradient.abs().max()
    torch.testing.assert_close(gradient.double() / scale, expected_gradient / scale, rtol=0.01, atol=1e-3)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_over_many_blocks_is_that_of_one(name, monkeypatch):
    logits, target = example(size=SIZE)
    got = loss_and_gradient(LOSSES[name](), logits, target)
    monkeypatch.setattr(_blocks, "BLOCK_VALUES", 1 << 30)
    torch.testing.assert_close(got, loss_and_gradient(LOSSES[name](), logits, target))


@pytest.mark.parametrize(("pixels", "number"), [(1023, 1), (1024, 1), (1025, 2), (2048, 2), (2049, 3), (0, 0)])
def test_blocks_cover_every_pixel_once(pixels, number, monkeypatch):
    monkeypatch.setattr(_blocks, "BLOCK_VALUES", 1)
    seen, found = torch.zeros(2, 3, pixels), list(_blocks.blocks(torch.zeros(2, 3, pixels)))
    for image, span in found:
        seen[image, :, span] += 1
    assert (seen == 1).all()
    assert len(found) == 2 * number


@pytest.fixture
def softmaxes(monkeypatch):
    """The number of softmaxes taken, as the length of a list."""
    calls = []

    def count(*args):
        calls.append(args)
        return softmax_terms(*args)

    monkeypatch.setattr(_inputs, "softmax_terms", count)
    return calls


def test_a_sum_of_losses_takes_one_softmax(softmaxes):
    logits, target = example()
    loss, gradient = loss_and_gradient(create_loss(SOFTMAX_SUM), logits, target)
    assert len(softmaxes) == 1
    singles = [loss_and_gradient(create_loss(name), logits, target) for name in SOFTMAX_SUM]
    weights = SOFTMAX_SUM.values()
    torch.testing.assert_close(loss, sum(w * single for w, (single, _) in zip(weights, singles, strict=True)))
    torch.testing.assert_close(gradient, sum(w * single for w, (_, single) in zip(weights, singles, strict=True)))


def test_losses_that_ignore_different_labels_share_nothing(softmaxes):
    logits, target = example()
    one, other = CrossEntropyLoss(ignore_index=255), DiceLoss(ignore_index=1)
    with pytest.raises(ValueError, match="expected 0 to 2 or ignore_index=1"):
        WeightedSum({"ce": one, "dice": other}, {"ce": 1, "dice": 1})(logits, target)
    target[target == 255] = 0
    got = WeightedSum({"ce": one, "dice": other}, {"ce": 1, "dice": 2})(logits, target)
    assert len(softmaxes) == 3  # one before the error
    torch.testing.assert_close(got, one(logits, target) + 2 * other(logits, target))


def test_a_loss_of_ones_own_can_be_summed_with_ours():
    logits, target = example()
    total = WeightedSum({"bce": BCELoss(), "own": torch.nn.CrossEntropyLoss(ignore_index=255)}, {"bce": 1, "own": 2})
    torch.testing.assert_close(
        total(logits, target), BCELoss()(logits, target) + 2 * CrossEntropyLoss()(logits, target)
    )
