import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segkit.losses import LOSSES, create_loss
from segkit.models import DECODERS, create_model
from segkit.models.layers import resize_like
from segkit.testing import MODES, check_decoder, check_loss

CHANNELS, STRIDES = (3, 8, 12, 16, 24, 32), (1, 2, 4, 8, 16, 32)


class Sum(nn.Module):
    """The smallest decoder: all levels from stride 4 on, brought to one width and added."""

    out_channels = 16

    def __init__(self, in_channels, strides):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, self.out_channels, 1) for c in in_channels[2:])

    def forward(self, features):
        maps = [conv(x) for conv, x in zip(self.lateral, features[2:], strict=True)]
        return sum(resize_like(x, maps[0]) for x in maps)


@pytest.mark.parametrize("name", DECODERS)
def test_our_decoders_conform(name):
    check_decoder(DECODERS[name], CHANNELS, STRIDES)


def test_a_decoder_of_ones_own_conforms_and_builds_a_model(monkeypatch):
    check_decoder(Sum, CHANNELS, STRIDES)
    monkeypatch.setitem(DECODERS, "sum", Sum)
    assert create_model("sum", backbone="resnet18", num_classes=2)(torch.randn(2, 3, 33, 40)).shape == (2, 2, 33, 40)


class Unused(Sum):
    def __init__(self, *args):
        super().__init__(*args)
        self.spare = nn.Conv2d(1, 1, 1)


class InPlace(Sum):
    def forward(self, features):
        return super().forward([x.mul_(2) for x in features])


class OneSize(Sum):
    def forward(self, features):
        return nn.functional.interpolate(super().forward(features), size=(24, 32)) + features[2].mean()


class AcrossTheBatch(Sum):
    def forward(self, features):
        return super().forward([x - x.mean(0, keepdim=True) for x in features])


class WrongWidth(Sum):
    def forward(self, features):
        return super().forward(features)[:, :-1]


class NoWidth(Sum):
    out_channels = 16

    def __init__(self, *args):
        super().__init__(*args)
        self.out_channels = None


class Baked(Sum):
    def forward(self, features):
        return super().forward(features) * (2.0 if features[0].shape[-1] == 128 else 1.0)


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (Unused, "get no gradient.*spare.weight"),
        (InPlace, "changes its input features"),
        (AcrossTheBatch, "must not depend on the batch"),
        (WrongWidth, "out_channels 16"),
        (NoWidth, "needs an attribute out_channels"),
        (Baked, "does not export with dynamic sizes"),
    ],
)
def test_a_fault_of_a_decoder_is_found_and_named(decoder, message):
    with pytest.raises(AssertionError, match=message):
        check_decoder(decoder, CHANNELS, STRIDES)


def test_the_decoder_is_left_as_it_was():
    decoder = Sum(CHANNELS, STRIDES).train()
    check_decoder(decoder, CHANNELS, STRIDES)
    assert decoder.training
    assert all(p.grad is None for p in decoder.parameters())


def modes(name):
    return MODES if "mode" in inspect.signature(LOSSES[name]).parameters else MODES[:1]


def conformance_cases():
    """Return all losses, modes and values to ignore; other values than 255 are slow in all modes but the first."""
    cases = [(name, mode, index) for name in LOSSES for mode in modes(name) for index in (255, 1, -100, None)]
    return [
        case if case[1] == MODES[0] or case[2] == 255 else pytest.param(*case, marks=pytest.mark.slow) for case in cases
    ]


@pytest.mark.parametrize(("name", "mode", "ignore_index"), conformance_cases())
def test_our_losses_conform(name, mode, ignore_index):
    options = {"mode": mode} if len(modes(name)) > 1 else {}
    loss = create_loss(name, ignore_index=ignore_index, **options)
    check_loss(loss, num_classes=3, mode=mode, ignore_index=ignore_index)


def test_a_sum_of_losses_conforms():
    check_loss(create_loss({"bce": 0.6, "dice": 0.4}))


def test_a_mode_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="`mode` must be one of multiclass, binary, multilabel, got 'multi'"):
        check_loss(create_loss("ce"), mode="multi")


def without_ignored(logits, target):
    """Logits and labels with 0 where ignored, and where that is not."""
    valid = target != 255
    return torch.where(valid.unsqueeze(1), logits, 0), torch.where(valid, target, 0).long(), valid


def right(logits, target):
    """The smallest loss that conforms."""
    logits, labels, valid = without_ignored(logits, target)
    losses = F.cross_entropy(logits.float(), labels, reduction="none") * valid
    return losses.sum() / valid.sum().clamp_min(1)


def test_a_loss_of_ones_own_conforms():
    check_loss(right)


def mean_over_all(logits, target):
    logits, labels, valid = without_ignored(logits, target)
    return (F.cross_entropy(logits.float(), labels, reduction="none") * valid).mean()


def scrambled(logits, target):  # the Lovasz loss of SMP before its repair took pixels for classes in this way
    shape = logits.shape[0], *logits.shape[2:], logits.shape[1]
    return right(logits.reshape(shape).movedim(-1, 1), target)


def mask_by_product(logits, target):
    valid = target != 255
    losses = F.cross_entropy(logits.float(), torch.where(valid, target, 0).long(), reduction="none") * valid
    return losses.sum() / valid.sum().clamp_min(1)


def hides_pixels_of_nan_alone(logits, target):
    hidden = torch.where(logits.isfinite().any(1, keepdim=True), logits, 0)
    return right(logits, target) + 0 * hidden.float().mean()


def leaks_a_gradient(logits, target):
    kept = torch.where((target == 255).unsqueeze(1), logits.float().clamp(-1, 1).nan_to_num(), 0).sum()
    return right(logits, target) + kept - kept.detach()


def fines_outliers(logits, target):
    return right(logits, target) + (logits.abs() > 1e6).float().mean()


def ignored_images_count(logits, target):
    return torch.stack([right(z[None], y[None]) for z, y in zip(logits, target, strict=True)]).mean()


def nothing_over_nothing(logits, target):
    logits, labels, valid = without_ignored(logits, target)
    return F.cross_entropy(logits.float(), labels, reduction="none")[valid].mean()


def stops_without_valid_pixels(logits, target):
    return right(logits, target) if (target != 255).any() else torch.zeros(())


def one_without_valid_pixels(logits, target):
    return right(logits, target) + (target == 255).all()


def pulls_without_valid_pixels(logits, target):
    pull = logits.float().clamp(-1, 1).nan_to_num().mean() if (target == 255).all() else torch.zeros(())
    return right(logits, target) + pull - pull.detach()


def unreduced(logits, target):
    return F.cross_entropy(logits.float(), target.long(), ignore_index=255, reduction="none")


def detached(logits, target):
    return right(logits.detach(), target)


def of_something_else(logits, target):
    return torch.ones((), requires_grad=True) * 2


def changes_logits(logits, target):
    return right(logits.clamp_(-1, 1), target)


def changes_target(logits, target):
    valid = target != 255
    loss = right(logits, target)
    target[~valid] = 0
    return loss


def squeezes(logits, target):
    return right(logits.squeeze(), target)


def one_row(logits, target):
    return right(logits, target) / (target.shape[1] - 1)


def every_class_needs_a_pixel(logits, target):
    logits, labels, valid = without_ignored(logits, target)
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    of_class = [(losses * valid * (labels == c)).sum() / (valid & (labels == c)).sum() for c in range(logits.shape[1])]
    return torch.stack(of_class).mean()


def int64_alone(logits, target):
    return right(logits, target) if target.dtype == torch.int64 else F.cross_entropy(logits, target)


def other_value_in_int32(logits, target):
    return right(logits, target) * (2 if target.dtype == torch.int32 else 1)


def views(logits, target):
    return right(logits.view(logits.shape[0], -1).view(logits.shape), target)


def raw_memory(logits, target):
    return right(logits.as_strided(logits.shape, torch.empty(logits.shape).stride()), target)


def plain_exponentials(logits, target):
    logits, labels, valid = without_ignored(logits, target)
    probs = logits.float().exp() / logits.float().exp().sum(1, keepdim=True)
    return -(probs.gather(1, labels.unsqueeze(1)).squeeze(1).log() * valid).sum() / valid.sum().clamp_min(1)


def root_of_a_probability(logits, target):
    return right(logits, target) + 0 * without_ignored(logits, target)[0].float().softmax(1).sqrt().mean()


def half_result(logits, target):
    return right(logits, target).to(logits.dtype)


def half_sums(logits, target):
    logits, labels, valid = without_ignored(logits, target)
    losses = F.cross_entropy(logits, labels, reduction="none") * valid
    return losses.sum().float() / valid.sum().clamp_min(1)


def half_products(logits, target):
    logits, _, valid = without_ignored(logits, target)
    probs, ones = logits.float().softmax(1).flatten(2), valid.float().flatten(1).unsqueeze(2)
    return right(logits, target) + 10 * (probs @ ones).square().sum() / valid.sum().clamp_min(1) ** 2


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (unreduced, r"returns one scalar tensor, got \(2, 6, 8\) for a batch of two"),
        (detached, "has no graph for a batch of two"),
        (of_something_else, "the logits get no gradient for a batch of two"),
        (changes_logits, "changes its logits in place"),
        (changes_target, "changes its target in place"),
        (squeezes, "raises RuntimeError for one pixel"),
        (one_row, "the loss is inf for one pixel"),
        (every_class_needs_a_pixel, "the loss is nan for a class without a pixel"),
        (int64_alone, "raises .* for uint8 targets"),
        (other_value_in_int32, "integer type of the target must not matter, int32 and int64 differ: the loss is"),
        (views, "raises RuntimeError for channels_last logits"),
        (raw_memory, "the memory layout must not matter"),
        (plain_exponentials, "the loss is nan for logits of 10,000"),
        (root_of_a_probability, "the gradient is not finite for logits of 10,000"),
        (mean_over_all, "must be the loss of the remaining pixels"),
        (scrambled, "must be the loss of the remaining pixels"),
        (leaks_a_gradient, "the gradient at ignored pixels must be exactly 0"),
        (ignored_images_count, "an image that is all ignored must not count"),
        (mask_by_product, "the loss is nan for logits of nan in all channels at ignored pixels"),
        (fines_outliers, "logits of inf in all channels at ignored pixels must change nothing"),
        (hides_pixels_of_nan_alone, "logits of nan in one channel at ignored pixels"),
        (nothing_over_nothing, "the loss must be 0 with all pixels ignored, got nan"),
        (stops_without_valid_pixels, "has no graph for all pixels ignored"),
        (one_without_valid_pixels, "the loss must be 0 with all pixels ignored, got 1.0"),
        (pulls_without_valid_pixels, "the gradient must be 0 with all pixels ignored"),
        (half_result, "the loss of bfloat16 logits must be float32"),
        (half_sums, "bfloat16 logits must be summed in float32"),
        (half_products, "logits under autocast to float16 must be summed in float32"),
    ],
)
def test_a_fault_of_a_loss_is_found_and_named(loss, message):
    with pytest.raises(AssertionError, match=message):
        check_loss(loss)
