import pytest
import torch
from torch import nn

from segkit.models import DECODERS, create_model
from segkit.models.layers import resize_like
from segkit.testing import check_decoder

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
        (AcrossTheBatch, "must not depend on its batch"),
        (WrongWidth, "out_channels 16"),
        (NoWidth, "needs an attribute out_channels"),
        (Baked, "does not export with sizes left free"),
    ],
)
def test_a_fault_is_found_and_named(decoder, message):
    with pytest.raises(AssertionError, match=message):
        check_decoder(decoder, CHANNELS, STRIDES)


def test_the_decoder_is_left_as_it_was():
    decoder = Sum(CHANNELS, STRIDES).train()
    check_decoder(decoder, CHANNELS, STRIDES)
    assert decoder.training
    assert all(p.grad is None for p in decoder.parameters())
