import copy

import pytest
import torch
from torch import nn

from segkit.models import DECODERS, create_model
from segkit.models.folding import FoldedFPN, _convolve_upsampled, _interleave, fold_fpn, fold_norms
from segkit.models.optimized import OptimizedSegmenter, optimize


def trained_like(name, backbone="resnet18", **options):
    """A model whose norms are not the identity, so that folding them shows."""
    torch.manual_seed(0)
    model = create_model(name, backbone=backbone, num_classes=3, **options).eval()
    for parameter in model.decoder.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    for layer in model.decoder.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -1, 1)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    nn.init.normal_(model.head.weight)
    return model


def fold(model):
    fold_norms(model)
    fold_fpn(model)
    return model


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in DECODERS),
        ("fpn", {"merge": "cat", "align_corners": True}),
        ("fpn", {"norm": "batch"}),
        ("fpn", {"norm": "none"}),
        ("fpn", {"output_stride": 16}),
        ("fpn", {"backbone": "convnext_atto"}),
        ("deeplabv3plus", {"aspp_separable": False, "aspp_refine": True}),
    ],
)
@pytest.mark.parametrize("size", [pytest.param((96, 64), marks=pytest.mark.slow), (41, 50), (1, 1)])
def test_a_folded_model_returns_the_same_logits(name, options, size):
    model = trained_like(name, **options)
    folded, images = fold(copy.deepcopy(model)), torch.randn(2, 3, *size)
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), model(images), rtol=1e-3, atol=1e-3)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.decoder.modules())


def test_an_fpn_is_folded_only_if_each_level_doubles_the_stride():
    assert isinstance(fold(trained_like("fpn")).decoder, FoldedFPN)
    assert not isinstance(fold(trained_like("fpn", output_stride=16)).decoder, FoldedFPN)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4)])
def test_four_small_convolutions_equal_one_of_the_upsampled_map(size):
    conv, x = nn.Conv2d(3, 5, 3, padding=1, bias=False).double(), torch.randn(2, 3, *size).double()
    expected = conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    torch.testing.assert_close(_interleave(_convolve_upsampled(conv).double()(x)), expected)


def test_optimize_does_not_change_the_model_and_its_result_replaces_it():
    model, images = trained_like("fpn"), torch.randn(1, 3, 50, 70)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fast = optimize(model.train(), compile=False)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    torch.testing.assert_close(fast(images), model.eval()(images), rtol=1e-3, atol=1e-3)
    assert (fast.class_names, fast.preprocessing, fast.num_classes) == (model.class_names, model.preprocessing, 3)


def test_optimize_in_bfloat16_returns_float32_logits_near_the_model():
    model, images = trained_like("unet"), torch.randn(1, 3, 64, 64)
    fast, expected = optimize(model, dtype=torch.bfloat16, compile=False)(images), model(images)
    assert fast.dtype == torch.float32
    assert (fast - expected).abs().max() < 0.05 * expected.abs().max()


def test_without_a_compiler_optimize_warns_in_one_line():
    from torch._inductor import config

    with (
        config.patch({"cpp.cxx": (None, "no-such-compiler")}),
        pytest.warns(UserWarning, match="there is no C\\+\\+ compiler"),
    ):
        fast = optimize(trained_like("fpn"))
    assert isinstance(fast, OptimizedSegmenter)
    assert not fast.compiled


def test_an_optimized_model_does_not_train():
    with pytest.raises(ValueError, match="only for inference"):
        optimize(trained_like("fpn"), compile=False).train()


@pytest.mark.slow
@pytest.mark.parametrize("name", DECODERS)
def test_the_compiled_model_returns_the_same_logits_at_any_size(name):
    model = trained_like(name)
    fast = optimize(model)
    assert fast.compiled
    for size in ((64, 96), (65, 70), (64, 96)):
        images = torch.randn(1, 3, *size)
        with torch.inference_mode():
            torch.testing.assert_close(fast(images), model(images), rtol=1e-3, atol=1e-3)
