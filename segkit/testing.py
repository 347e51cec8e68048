"""Conformance tests for modules of your own; our decoders pass them too."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

SIZES = ((96, 128), (97, 131), (33, 5), (1, 1))


def check_decoder(
    decoder: Callable[..., nn.Module] | nn.Module, in_channels: Sequence[int], strides: Sequence[int]
) -> None:
    """Checks that a decoder does what `Segmenter` relies on.

    That is: one map (N, out_channels, h, w) from a feature pyramid of any image size, a single pixel
    included; an equal answer for an image alone and in a batch in eval mode; a gradient for every
    parameter, in a training batch of one as well; half precision; export with a dynamic size.

    Args:
        decoder: A module `list[Tensor] -> Tensor` with an attribute `out_channels`, or a class that is
            called with `in_channels` and `strides`.
        in_channels: Channels of each pyramid level, finest first; the first is the image itself.
        strides: Stride of each level.

    Raises:
        AssertionError: names what does not hold, with what was expected and what came.
    """
    if not isinstance(decoder, nn.Module):
        decoder = decoder(in_channels, strides)
    _check_contract(decoder)
    with _restored_mode(decoder):
        for size in SIZES:
            _check_shape(decoder.eval(), _features(in_channels, strides, size), size)
        _check_batch_independence(decoder.eval(), _features(in_channels, strides, (64, 96)))
        _check_gradients(decoder.train(), _features(in_channels, strides, (64, 96), batch=1))
        for dtype in (torch.bfloat16, torch.float16):
            _check_precision(decoder.eval(), _features(in_channels, strides, (64, 64)), dtype)
        _check_export(decoder.eval(), in_channels, strides)


def _features(
    in_channels: Sequence[int], strides: Sequence[int], size: tuple[int, int], batch: int = 2
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, channels, -(-size[0] // stride), -(-size[1] // stride), generator=generator)
        for channels, stride in zip(in_channels, strides, strict=True)
    ]


@contextmanager
def _restored_mode(module: nn.Module) -> Iterator[None]:
    training = module.training
    try:
        yield
    finally:
        module.train(training)
        module.zero_grad()


def _check_contract(decoder: nn.Module) -> None:
    channels = getattr(decoder, "out_channels", None)
    assert isinstance(channels, int), f"a decoder needs an attribute out_channels: int, got {channels!r}"


@torch.inference_mode()
def _check_shape(decoder: nn.Module, features: list[Tensor], size: tuple[int, int]) -> None:
    before = [feature.clone() for feature in features]
    out = decoder(features)
    assert isinstance(out, Tensor), f"a decoder gives one tensor, got {type(out).__name__}"
    assert out.ndim == 4, f"a decoder gives (N, C, h, w), got {tuple(out.shape)}"
    assert out.shape[:2] == (2, decoder.out_channels), (
        f"expected batch 2 and out_channels {decoder.out_channels}, got {tuple(out.shape)} for images {size}"
    )
    assert torch.isfinite(out).all(), f"the output is not finite for images {size}"
    for level, (feature, copy) in enumerate(zip(features, before, strict=True)):
        assert torch.equal(feature, copy), f"the decoder changes its input features at level {level}"


@torch.inference_mode()
def _check_batch_independence(decoder: nn.Module, features: list[Tensor]) -> None:
    together, alone = decoder(features), decoder([feature[1:] for feature in features])
    difference = (together[1:] - alone).abs().max().item()
    scale = together.abs().max().item()
    assert difference <= 1e-4 * max(scale, 1.0), (
        f"in eval mode an image must not depend on its batch; alone it differs by {difference:.2g}"
    )


def _check_gradients(decoder: nn.Module, features: list[Tensor]) -> None:
    decoder.zero_grad()
    decoder(features).square().mean().backward()
    without = [name for name, p in decoder.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, f"these parameters get no gradient, which stops DistributedDataParallel: {', '.join(without)}"


@torch.inference_mode()
def _check_precision(decoder: nn.Module, features: list[Tensor], dtype: torch.dtype) -> None:
    with torch.autocast("cpu", dtype=dtype):
        out = decoder(features)
    assert torch.isfinite(out).all(), f"the output is not finite under autocast to {dtype}"


def _check_export(decoder: nn.Module, in_channels: Sequence[int], strides: Sequence[int]) -> None:
    features = _features(in_channels, strides, (96, 128))
    free = [{0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO} for _ in features]
    other = _features(in_channels, strides, (160, 64), batch=3)
    with torch.inference_mode():
        expected = decoder(other)
    try:
        exported = torch.export.export(decoder, (features,), dynamic_shapes=(free,)).module()
        got = exported(other)
    except Exception as error:  # torch.export has no common base for what it refuses
        raise AssertionError(f"the decoder does not export with sizes left free: {error}") from error
    torch.testing.assert_close(got, expected, msg=lambda text: f"the exported decoder gives another result: {text}")
