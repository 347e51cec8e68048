import pytest
import torch
from torch import nn

from segkit.tta import FLIPS, TTA


class PixelModel(nn.Module):
    """Logits that depend on each pixel alone, so that every view agrees exactly after its inverse."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.calls = []

    def forward(self, images):
        self.calls.append(tuple(images.shape))
        return self.conv(images)


@pytest.mark.parametrize("flips", FLIPS)
@pytest.mark.parametrize("size", [(7, 10), (1, 1), (33, 8)])
def test_flips_are_undone_exactly(flips, size):
    model, images = PixelModel(), torch.randn(2, 3, *size)
    expected = model(images).softmax(1)
    torch.testing.assert_close(TTA(flips=flips)(model, images), expected)


@pytest.mark.parametrize("scale", [0.7, 0.75, 1.1, 1.3])
def test_any_size_with_any_scale_comes_back_at_its_size(scale):
    model = PixelModel()
    for size in range(1, 60, 7):
        assert TTA(scales=(scale, 1.0), flips="v")(model, torch.randn(1, 3, size, 61 - size)).shape[-2:] == (
            size,
            61 - size,
        )


def test_resizing_does_not_shift_a_ramp():
    class Ramp(nn.Module):
        def forward(self, images):
            return torch.cat([images[:, :1], torch.zeros_like(images[:, :1])], dim=1)

    ramp = torch.linspace(-1, 1, 40).view(1, 1, 1, 40).expand(1, 3, 30, 40)
    probs = TTA(scales=(0.75, 1.25))(Ramp(), ramp)
    inner = (probs - Ramp()(ramp).softmax(1))[..., 3:-3]
    assert inner.abs().max() < 1e-3


def test_flips_run_as_one_batch_and_repeated_scales_once():
    model = PixelModel()
    TTA(scales=(1.0, 0.5, 1.0), flips="hv")(model, torch.randn(2, 3, 8, 6))
    assert model.calls == [(8, 3, 8, 6), (8, 3, 4, 3)]


def test_the_mode_of_the_model_is_kept_and_dropout_is_off():
    model = nn.Sequential(PixelModel(), nn.Dropout(0.5)).train()
    images = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(TTA()(model, images), model[0](images).softmax(1))
    assert model.training


@pytest.mark.parametrize(("options", "message"), [({"flips": "x"}, "unknown flips"), ({"scales": (0,)}, "positive")])
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        TTA(**options)
