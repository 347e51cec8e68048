import pytest
import torch
from torch import nn

from segkit.models import DECODERS, DeepLabV3Plus, UNet, create_model
from segkit.models.deeplabv3plus import ASPP
from segkit.models.fpn import _routes
from segkit.models.layers import BatchNormOfVectors

CHANNELS, STRIDES = (3, 8, 12, 16, 24, 32), (1, 2, 4, 8, 16, 32)
OUTPUT_STRIDE = {"deeplabv3plus": 4, "fpn": 4, "unet": 1}


def random_features(height, width, batch=2):
    return [
        torch.randn(batch, channels, -(-height // stride), -(-width // stride))
        for channels, stride in zip(CHANNELS, STRIDES, strict=True)
    ]


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("size", [(64, 96), (97, 131), (33, 5), (1, 1)])
def test_a_decoder_returns_its_channels_at_its_stride(name, size):
    decoder = DECODERS[name](CHANNELS, STRIDES).eval()
    stride = OUTPUT_STRIDE[name]
    expected = (2, decoder.out_channels, -(-size[0] // stride), -(-size[1] // stride))
    assert decoder(random_features(*size)).shape == expected


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_every_parameter_gets_a_gradient_even_in_a_batch_of_one(name, norm):
    decoder = DECODERS[name](CHANNELS, STRIDES, norm=norm)
    decoder(random_features(65, 70, batch=1)).square().mean().backward()
    without = [key for key, parameter in decoder.named_parameters() if parameter.grad is None]
    assert without == []


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("backbone", ["resnet18", "tf_efficientnet_lite0", "mobilenetv3_small_100", "convnext_atto"])
@pytest.mark.parametrize("size", [(97, 131), (64, 32)])
def test_logits_have_the_size_of_the_images(name, backbone, size):
    # convnext cannot be dilated, so DeepLabV3+ runs on it at stride 32.
    stride = 32 if backbone == "convnext_atto" else None
    model = create_model(name, backbone=backbone, num_classes=5, output_stride=stride).eval()
    with torch.inference_mode():
        assert model(torch.randn(2, 3, *size)).shape == (2, 5, *size)


@pytest.mark.parametrize("name", DECODERS)
def test_a_model_trains_on_a_batch_of_one(name):
    model = create_model(name, backbone="resnet18", num_classes=3).train()
    model(torch.randn(1, 3, 65, 64)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_splitting_the_aspp_projection_equals_concatenating_the_pooled_branch():
    aspp = ASPP(32, (6, 12), channels=16).eval()
    x = torch.randn(2, 32, 9, 7)
    pooled = aspp.pooled(x.mean((2, 3), keepdim=True)).expand(-1, -1, 9, 7)
    expected = aspp.project(torch.cat([*(branch(x) for branch in aspp.branches), pooled], dim=1))
    torch.testing.assert_close(aspp(x), expected)


@pytest.mark.parametrize(("output_stride", "rates"), [(8, (12, 24, 36)), (16, (6, 12, 18)), (32, (3, 6, 9))])
def test_atrous_rates_follow_the_output_stride(output_stride, rates):
    decoder = DeepLabV3Plus((3, 8, 8), (1, 4, output_stride))
    assert tuple(branch.depthwise.dilation[0] for branch in list(decoder.aspp.branches)[1:]) == rates


def test_fpn_levels_pass_each_finer_size_once():
    assert _routes([4, 8, 16, 32]) == [[], [0], [1, 0], [2, 1, 0]]
    assert _routes([4, 8, 16, 16]) == [[], [0], [1, 0], [1, 0]]


def test_pooled_batch_norm_keeps_its_running_statistics_in_a_batch_of_one():
    norm = BatchNormOfVectors(4).train()
    before = norm.running_mean.clone()
    assert torch.isfinite(norm(torch.randn(1, 4, 1, 1))).all()
    assert torch.equal(norm.running_mean, before)
    norm(torch.randn(2, 4, 1, 1))
    assert not torch.equal(norm.running_mean, before)


@pytest.mark.parametrize("name", DECODERS)
def test_convolutions_start_with_he_normal_weights(name):
    decoder = DECODERS[name](CHANNELS, STRIDES)
    big = [m for m in decoder.modules() if isinstance(m, nn.Conv2d) and m.weight.numel() > 4000]
    assert big
    for conv in big:
        expected = (2 / conv.weight[0].numel()) ** 0.5
        assert conv.weight.std().item() == pytest.approx(expected, rel=0.1)


def test_unet_names_the_number_of_channels_it_needs():
    with pytest.raises(ValueError, match="needs 5 `channels`"):
        UNet(CHANNELS, STRIDES, channels=(8, 8))


@pytest.mark.parametrize(
    ("stride", "widths"), [(32, [256, 128, 64, 32, 16]), (16, [128, 64, 32, 16]), (8, [64, 32, 16])]
)
def test_unet_has_a_default_width_for_each_doubling(stride, widths):
    model = create_model("unet", backbone="resnet18", num_classes=2, output_stride=stride).eval()
    assert [step.fuse[1].conv.out_channels for step in model.decoder.steps] == widths
    with torch.no_grad():
        assert model(torch.randn(1, 3, 33, 40)).shape == (1, 2, 33, 40)
