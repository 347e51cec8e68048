"""Conformance tests for your own decoders and losses; ours pass them too."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from segkit.errors import UsageError

LossFunction = Callable[[Tensor, Tensor], Tensor]

SIZES = ((96, 128), (97, 131), (33, 5), (1, 1))
MODES = ("multiclass", "binary", "multilabel")
POISONS = (math.nan, math.inf, -math.inf, 1e30)  # values of logits that must have no effect at ignored pixels


def check_decoder(
    decoder: Callable[..., nn.Module] | nn.Module, in_channels: Sequence[int], strides: Sequence[int]
) -> None:
    """Check that a decoder does everything that `Segmenter` relies on.

    The decoder must return one map (N, out_channels, h, w) for the feature pyramid of an image of any size, even of a
    single pixel. In eval mode, the result for an image must not depend on the other images of the batch. Every
    parameter must get a gradient, also in a training batch of one. Half precision, and export with dynamic sizes,
    must work.

    Args:
        decoder: A module `list[Tensor] -> Tensor` with an attribute `out_channels`, or a class that is
            called with `in_channels` and `strides`.
        in_channels: Channels of each pyramid level, finest first; the first level is the image itself.
        strides: Stride of each level.

    Raises:
        AssertionError: One of these does not hold; the message says which, what was expected and what was found.
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
    assert isinstance(out, Tensor), f"a decoder returns one tensor, got {type(out).__name__}"
    assert out.ndim == 4, f"a decoder returns (N, C, h, w), got {tuple(out.shape)}"
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
        f"in eval mode the result must not depend on the batch; in a batch of one it differs by {difference:.2g}"
    )


def _check_gradients(decoder: nn.Module, features: list[Tensor]) -> None:
    decoder.zero_grad()
    decoder(features).square().mean().backward()
    without = [name for name, p in decoder.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, f"these parameters get no gradient, so DistributedDataParallel fails: {', '.join(without)}"


@torch.inference_mode()
def _check_precision(decoder: nn.Module, features: list[Tensor], dtype: torch.dtype) -> None:
    with torch.autocast("cpu", dtype=dtype):
        out = decoder(features)
    assert torch.isfinite(out).all(), f"the output is not finite under autocast to {dtype}"


class _TakesAll(nn.Module):
    """A decoder that uses all of its features: older torch exports unused ones with a fixed size."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.decoder([feature + 0 for feature in features])


def _check_export(decoder: nn.Module, in_channels: Sequence[int], strides: Sequence[int]) -> None:
    features = _features(in_channels, strides, (96, 128))
    free = [{0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO} for _ in features]
    other = _features(in_channels, strides, (160, 64), batch=3)
    with torch.inference_mode():
        expected = decoder(other)
    try:
        exported = torch.export.export(_TakesAll(decoder), (features,), dynamic_shapes=(free,)).module()
        got = exported(other)
    except Exception as error:  # the errors of torch.export have no common base class
        raise AssertionError(f"the decoder does not export with dynamic sizes: {error}") from error
    torch.testing.assert_close(got, expected, msg=lambda text: f"the exported decoder returns another result: {text}")


def check_loss(
    loss: LossFunction,
    *,
    num_classes: int = 4,
    mode: Literal["multiclass", "binary", "multilabel"] = "multiclass",
    ignore_index: int | None = 255,
) -> None:
    """Check that a loss does everything that a training loop relies on, above all that it ignores ignored pixels.

    The loss must return one scalar with a graph and leave its inputs unchanged, also for a single pixel, a batch of
    one and an absent class. The integer type of the target and the memory layout must not matter. Loss and gradient
    must be finite for logits of 10,000 and -10,000. Sums must be in float32 for half-precision logits and under
    autocast. With an `ignore_index`, the result must be the loss of the remaining pixels, with gradient 0 at the
    ignored ones, for any logits there; if all pixels are ignored, it must be 0 and have a graph.

    Args:
        loss: A module or function (logits, target) -> scalar that does not depend on the position of a pixel.
            Logits are (N, C, H, W). The target has integers: 0 and 1 of shape (N, C, H, W) in mode `multilabel`,
            else (N, H, W).
        num_classes: C; in mode `binary` C is 1.
        mode: The mode that the loss was built for.
        ignore_index: The label to ignore that the loss was built with, one of the classes or not; None for none.

    Raises:
        AssertionError: One of these does not hold; the message says which.
        UsageError: An unknown mode.
    """
    if mode not in MODES:
        raise UsageError(f"`mode` must be one of {', '.join(MODES)}, got {mode!r}")
    examples = _Examples(1 if mode == "binary" else num_classes, mode, ignore_index)
    _check_scalar(loss, examples)
    _check_small_inputs(loss, examples)
    _check_target_types(loss, examples)
    _check_layout(loss, examples)
    _check_large_logits(loss, examples)
    if ignore_index is not None:
        _check_removal(loss, examples)
        _check_ignored_image(loss, examples)
        _check_ignored_logits(loss, examples)
        _check_all_ignored(loss, examples)
    _check_half_precision(loss, examples)


@dataclass(frozen=True)
class _Examples:
    """Make logits and targets for one kind of loss; the same ones for the same size."""

    num_classes: int
    mode: str
    ignore_index: int | None

    @property
    def labels(self) -> list[int]:
        """The labels of pixels that are not ignored."""
        return [i for i in range(self.num_classes if self.mode == "multiclass" else 2) if i != self.ignore_index]

    def make(self, n: int, height: int, width: int, *, ignored: float = 0.3) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        logits = 2 * torch.randn(n, self.num_classes, height, width, generator=generator)
        shape = logits.shape if self.mode == "multilabel" else (n, height, width)
        target = torch.tensor(self.labels)[torch.randint(len(self.labels), shape, generator=generator)]
        if self.ignore_index is not None and ignored:
            pixels = torch.rand(n, height, width, generator=generator) < ignored
            target[(pixels.unsqueeze(1) if target.ndim == 4 else pixels).expand(shape)] = self.ignore_index
        return logits, target

    def ignored(self, target: Tensor) -> Tensor:
        """Return which pixels are ignored, (N, H, W) bool."""
        return (target[:, 0] if target.ndim == 4 else target) == self.ignore_index


def _evaluate(loss: LossFunction, logits: Tensor, target: Tensor, case: str) -> tuple[Tensor, Tensor]:
    """Return the loss and its gradient with respect to the logits."""
    leaf = logits.detach().requires_grad_()
    given = leaf * 1  # Not a leaf, like the output of a model: autograd would forbid to change a leaf in place.
    before = given.detach().clone(), target.clone()
    try:
        value = loss(given, target)
    except Exception as error:  # A user's loss may raise anything.
        raise AssertionError(f"the loss raises {type(error).__name__} for {case}: {error}") from error
    shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    assert shape == (), f"a loss returns one scalar tensor, got {shape} for {case}"
    for name, now, then in zip(("logits", "target"), (given, target), before, strict=True):
        assert torch.equal(now.nan_to_num(), then.nan_to_num()), f"the loss changes its {name} in place for {case}"
    assert value.requires_grad, f"the loss has no graph for {case}, so DistributedDataParallel fails"
    (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True)
    assert gradient is not None, f"the logits get no gradient for {case}, so DistributedDataParallel fails"
    return value.detach(), gradient


def _assert_finite(value: Tensor, gradient: Tensor, case: str) -> None:
    assert torch.isfinite(value), f"the loss is {value.item()} for {case}"
    assert torch.isfinite(gradient).all(), f"the gradient is not finite for {case}"


def _assert_close(got: Sequence[Tensor], expected: Sequence[Tensor], claim: str) -> None:
    """Compare losses, then gradients if there are any; gradients relative to their largest value."""
    for what, a, b in zip(("loss", "gradient"), got, expected, strict=False):
        difference, scale = (a - b).abs().max().item(), b.abs().max().item()
        detail = f"{a.item():.6g}, expected {b.item():.6g}" if what == "loss" else f"off by {difference:.2g}"
        assert difference <= 1e-4 * max(scale, 1e-3), f"{claim}: the {what} is {detail}"


def _check_scalar(loss: LossFunction, examples: _Examples) -> None:
    _assert_finite(*_evaluate(loss, *examples.make(2, 6, 8), "a batch of two"), "a batch of two")


def _check_small_inputs(loss: LossFunction, examples: _Examples) -> None:
    logits, target = examples.make(2, 6, 8)
    absent = torch.where(target == examples.labels[-1], examples.labels[0], target)
    cases = {
        "a batch of one": examples.make(1, 6, 8),
        "a class without a pixel in the target": (logits, absent),
        "one pixel": examples.make(1, 1, 1, ignored=0),
    }
    for case, inputs in cases.items():
        _assert_finite(*_evaluate(loss, *inputs, case), case)


def _check_target_types(loss: LossFunction, examples: _Examples) -> None:
    logits, target = examples.make(2, 6, 8)
    expected = _evaluate(loss, logits, target, "int64 targets")
    for dtype in (torch.uint8, torch.int32):
        if torch.equal(target.to(dtype).long(), target):  # uint8 cannot hold an `ignore_index` of -100
            name = str(dtype).removeprefix("torch.")
            got = _evaluate(loss, logits, target.to(dtype), f"{name} targets")
            _assert_close(got, expected, f"the integer type of the target must not matter, {name} and int64 differ")


def _check_layout(loss: LossFunction, examples: _Examples) -> None:
    logits, target = examples.make(2, 6, 8)
    expected = _evaluate(loss, logits, target, "contiguous logits")
    got = _evaluate(loss, logits.to(memory_format=torch.channels_last), target, "channels_last logits")
    _assert_close(got, expected, "the memory layout must not matter, channels_last and contiguous logits differ")


def _check_large_logits(loss: LossFunction, examples: _Examples) -> None:
    logits, target = examples.make(2, 6, 8)
    case = "logits of 10,000 and -10,000"
    _assert_finite(*_evaluate(loss, logits.sign() * 1e4, target, case), case)


def _check_removal(loss: LossFunction, examples: _Examples) -> None:
    logits, target = examples.make(1, 6, 8)
    keep = ~examples.ignored(target)[0]
    got, gradient = _evaluate(loss, logits, target, "ignored pixels")
    kept = logits[:, :, keep].unsqueeze(2), target[..., keep].unsqueeze(-2)
    expected = _evaluate(loss, *kept, "the pixels that are not ignored, in one row")
    claim = "the loss with ignored pixels must be the loss of the remaining pixels"
    _assert_close((got, gradient[:, :, keep].unsqueeze(2)), expected, claim)
    assert (gradient[:, :, ~keep] == 0).all(), "the gradient at ignored pixels must be exactly 0"


def _check_ignored_image(loss: LossFunction, examples: _Examples) -> None:
    logits, target = examples.make(2, 6, 8)
    target[1] = examples.ignore_index
    got, gradient = _evaluate(loss, logits, target, "an image that is all ignored, next to another")
    expected = _evaluate(loss, logits[:1], target[:1], "a batch of one")
    claim = "an image that is all ignored must not count in the mean over the batch"
    _assert_close((got, gradient[:1]), expected, claim)


def _check_ignored_logits(loss: LossFunction, examples: _Examples) -> None:
    logits, target = examples.make(2, 6, 8)
    ignored = examples.ignored(target).unsqueeze(1)
    expected = _evaluate(loss, logits, target, "ignored pixels")
    for poison in POISONS:
        for channels, where in ((slice(None), "all channels"), (slice(1), "one channel")):
            poisoned = logits.clone()
            poisoned[:, channels] = torch.where(ignored, poison, logits[:, channels])
            case = f"logits of {poison} in {where} at ignored pixels"
            got = _evaluate(loss, poisoned, target, case)
            _assert_finite(*got, case)
            _assert_close(got, expected, f"{case} must change nothing")


def _check_all_ignored(loss: LossFunction, examples: _Examples) -> None:
    logits, target = examples.make(2, 6, 8)
    target = torch.full_like(target, examples.ignore_index)
    for case, z in {"all pixels ignored": logits, "all pixels ignored, their logits NaN": logits * math.nan}.items():
        value, gradient = _evaluate(loss, z, target, case)
        assert value == 0, f"the loss must be 0 with {case}, got {value.item()}"
        assert (gradient == 0).all(), f"the gradient must be 0 with {case}"


def _check_half_precision(loss: LossFunction, examples: _Examples) -> None:
    logits, target = examples.make(1, 300, 300)  # 90,000 pixels: their sum exceeds float16
    for dtype in (torch.bfloat16, torch.float16):
        half, name = logits.to(dtype), str(dtype).removeprefix("torch.")
        got = _evaluate(loss, half, target, f"{name} logits")
        _assert_finite(*got, f"{name} logits")
        assert got[0].dtype == torch.float32, f"the loss of {name} logits must be float32, got {got[0].dtype}"
        (expected, _), claim = _evaluate(loss, half.float(), target, "float32 logits"), "must be summed in float32"
        _assert_close(got[:1], [expected], f"{name} logits {claim}")
        with torch.autocast("cpu", dtype=dtype):
            got = _evaluate(loss, half.float(), target, f"autocast to {name}")
        _assert_close(got[:1], [expected], f"logits under autocast to {name} {claim}")
