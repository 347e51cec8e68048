import pytest
import torch
from torch import nn

from segkit.models import DECODERS, Backbone, create_model
from segkit.models.segmenter import pad_to_multiple


@pytest.mark.parametrize("stride", [8, pytest.param(16, marks=pytest.mark.slow)])
def test_a_dilated_backbone_computes_the_same_features_more_densely(stride):
    # The à-trous identity. Squeeze-excite would see another mean, TF-"same" padding another phase.
    torch.manual_seed(0)
    plain, dilated = Backbone("resnext50_32x4d").eval(), Backbone("resnext50_32x4d", output_stride=stride).eval()
    dilated.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 96, 128)
    with torch.inference_mode():
        coarse, fine = plain(images)[-1], dilated(images)[-1]
    step = 32 // stride
    torch.testing.assert_close(fine[..., ::step, ::step], coarse, rtol=1e-3, atol=1e-4)


def test_features_with_channels_last_are_turned():
    pyramid = Backbone("swin_tiny_patch4_window7_224").eval()
    with torch.inference_mode():
        shapes = [tuple(x.shape[1:]) for x in pyramid(torch.randn(1, 3, 64, 96))]
    assert shapes == [(3, 64, 96), (96, 16, 24), (192, 8, 12), (384, 4, 6), (768, 2, 3)]


@pytest.mark.parametrize(
    ("name", "multiple"),
    [("resnet18", (32, 32)), ("mobilevitv2_050", (64, 64)), ("convnext_atto", (32, 32)), ("hrnet_w18_small", (32, 32))],
)
def test_the_size_multiple_is_what_the_network_needs(name, multiple):
    assert Backbone(name).size_multiple == multiple


@pytest.mark.slow
def test_a_window_network_is_padded_to_its_windows():
    model = create_model("fpn", backbone="maxvit_tiny_tf_224", num_classes=2).eval()
    assert model.backbone.size_multiple == (224, 224)
    with torch.inference_mode():
        assert model(torch.randn(1, 3, 97, 300)).shape == (1, 2, 97, 300)


def test_a_network_for_one_size_is_built_for_the_size_that_is_asked_for():
    with pytest.raises(ValueError, match=r"a single size; pass `img_size` \(H, W\)"):
        Backbone("efficientformerv2_s0")
    model = create_model("unet", backbone="efficientformerv2_s0", num_classes=2, img_size=(96, 128)).eval()
    with torch.inference_mode():
        assert model(torch.randn(1, 3, 97 - 20, 120)).shape == (1, 2, 77, 120)


def test_a_network_without_a_pyramid_is_refused_with_the_names_of_others():
    with pytest.raises(
        ValueError, match="only maps of stride 16, not a pyramid; choose a network with stages, such as resnet50"
    ):
        create_model("fpn", backbone="vit_tiny_patch16_224", num_classes=2)


@pytest.mark.parametrize("name", DECODERS)
def test_logits_at_an_odd_size_equal_the_cropped_logits_of_the_padded_image(name):
    torch.manual_seed(0)
    model = create_model(name, backbone="resnet18", num_classes=3).eval()
    images = torch.randn(1, 3, 41, 50)
    with torch.inference_mode():
        whole = model(pad_to_multiple(images, model.backbone.size_multiple))
        torch.testing.assert_close(model(images), whole[..., :41, :50])


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("channels", [1, 4])
def test_any_number_of_channels_goes_in(name, channels):
    model = create_model(name, backbone="mobilenetv3_small_100", num_classes=2, in_channels=channels).eval()
    assert len(model.preprocessing.mean) == channels
    with torch.inference_mode():
        assert model(torch.randn(1, channels, 40, 33)).shape == (1, 2, 40, 33)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("dtype", [pytest.param(torch.float16, marks=pytest.mark.slow), torch.bfloat16])
def test_half_precision_returns_nearly_the_same_logits(name, dtype):
    torch.manual_seed(0)
    model = create_model(name, backbone="resnet18", num_classes=3).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = model(images)
        with torch.autocast("cpu", dtype=dtype):
            mixed = model(images)
        pure = model.to(dtype)(images.to(dtype))
    assert pure.dtype == dtype
    scale = expected.abs().max()
    assert (mixed.float() - expected).abs().max() < 0.05 * scale
    assert (pure.float() - expected).abs().max() < 0.05 * scale


@pytest.mark.parametrize("name", DECODERS)
def test_channels_last_returns_the_same_logits(name):
    torch.manual_seed(0)
    model = create_model(name, backbone="resnet18", num_classes=3).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = model(images)
        turned = model.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(turned, expected, rtol=1e-3, atol=1e-5)


def has_batch_norm(module):
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules())


@pytest.mark.parametrize("name", DECODERS)
def test_the_chosen_norm_is_the_one_that_is_built(name):
    for norm, count in (("group", 1), ("none", 0)):
        decoder = create_model(name, backbone="resnet18", num_classes=2, norm=norm).decoder
        assert not has_batch_norm(decoder)
        assert any(isinstance(layer, nn.GroupNorm) for layer in decoder.modules()) == bool(count)
    assert has_batch_norm(create_model(name, backbone="resnet18", num_classes=2, norm="batch").decoder)
