import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import nn

from segkit.models import create_model
from segkit.models.layers import AtrousDepthwiseConv2d
from segkit.models.same_padding import SameDepthwiseConv2d, pad_kernels

FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("rate", [1, 6, 7, 12, 24, 36])
@pytest.mark.parametrize("size", [(32, 32), (13, 40), (40, 13), (5, 100), (1, 1)])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_an_atrous_depthwise_convolution_equals_torchs(rate, size, memory_format):
    conv, x = AtrousDepthwiseConv2d(8, rate), torch.randn(2, 8, *size).to(memory_format=memory_format)
    expected = F.conv2d(x, conv.weight, padding=rate, dilation=rate, groups=8)
    with torch.no_grad():
        got = conv(x)
    torch.testing.assert_close(got, expected)
    assert got.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(conv(x), expected)  # with gradients it takes another path


def test_an_atrous_depthwise_convolution_has_torchs_gradients_if_only_its_middle_meets_the_map():
    conv, x = AtrousDepthwiseConv2d(4, 12), torch.randn(2, 4, 12, 9, requires_grad=True)
    expected = F.conv2d(x, conv.weight, padding=12, dilation=12, groups=4)
    upstream = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (x, conv.weight), upstream)
    torch.testing.assert_close(torch.autograd.grad(conv(x), (x, conv.weight), upstream), wanted)


def test_an_atrous_depthwise_convolution_in_bfloat16_rounds_once():
    conv, x = AtrousDepthwiseConv2d(8, 12).bfloat16(), torch.randn(1, 8, 32, 32).bfloat16()
    expected = F.conv2d(x.float(), conv.weight.float(), padding=12, dilation=12, groups=8)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), expected.bfloat16(), rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("kernel", [3, 5, (3, 5), 2, 1])
@pytest.mark.parametrize("stride", [2, (1, 2), 3])
@pytest.mark.parametrize("size", [(12, 12), (12, 30), (13, 12), (7, 9)])
@pytest.mark.parametrize("bias", [True, False])
def test_padding_the_kernel_equals_padding_the_map(kernel, stride, size, bias):
    conv, x = Conv2dSame(6, 6, kernel, stride, groups=6, bias=bias), torch.randn(2, 6, *size)
    torch.testing.assert_close(SameDepthwiseConv2d.from_conv(conv)(x), conv(x))


def test_only_depthwise_convolutions_of_a_backbone_get_padded_kernels():
    model = create_model("unet", backbone="tf_efficientnet_lite0", num_classes=2)
    strided = [m for m in model.modules() if isinstance(m, Conv2dSame)]
    padded = [m for m in strided if isinstance(m, SameDepthwiseConv2d)]
    assert len(padded) == 4
    assert all(m.groups == m.in_channels for m in padded)
    assert [m for m in strided if m.groups > 1] == padded


def test_padded_kernels_leave_names_and_weights_as_they_are():
    net = timm.create_model("tf_efficientnet_lite0", features_only=True).eval()
    x, before = torch.randn(1, 3, 64, 96), dict(net.named_parameters())
    expected = net(x)
    pad_kernels(net)
    assert all(parameter is before[name] for name, parameter in net.named_parameters())
    for got, wanted in zip(net(x), expected, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.slow
def test_optimize_turns_weights_into_constants_and_joins_activations():
    from torch._dynamo.utils import counters

    from segkit.models import optimize

    torch.compiler.reset()
    counters.clear()
    model = create_model("fpn", backbone="resnet18", num_classes=2)
    with torch._inductor.config.patch(force_disable_caches=True):
        optimize(model)(torch.randn(1, 3, 64, 64))
    convolutions = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    assert counters["inductor"]["mkldnn_conv_weight_pack_matcher_count"] == convolutions
    assert counters["inductor"]["mkldnn_unary_fusion_matcher_count"] > 0


@pytest.mark.slow
def test_many_optimized_models_stay_compiled_in_one_process():
    from torch._dynamo.utils import counters

    from segkit.models import optimize

    torch.compiler.reset()
    counters.clear()
    for _ in range(10):
        model = create_model("fpn", backbone="test_resnet", num_classes=2)
        optimize(model)(torch.randn(1, 3, 64, 64))
    assert counters["stats"]["unique_graphs"] == 10
