"""Layers that the decoders share."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from numbers import Integral, Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkit.compat import is_exporting
from segkit.errors import UsageError
from segkit.names import check_known

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    # 32 groups as in Wu & He, "Group Normalization", 2018; fewer if 32 does not divide the channels, or if a group
    # would have one channel: in a 1x1 map that would be one value, which torch refuses to normalise.
    "group": lambda channels: nn.GroupNorm(_largest_divisor(channels, min(32, max(1, channels // 2))), channels),
    "none": lambda channels: nn.Identity(),
}


def resize_like(x: Tensor, reference: Tensor, mode: str = "bilinear", *, align_corners: bool = False) -> Tensor:
    """Resize `x` (N, C, h, w) to the height and width of `reference` (N, C', H, W)."""
    return resize(x, reference.shape[-2:], mode, align_corners=align_corners)


def resize(x: Tensor, size: Sequence[int], mode: str = "bilinear", *, align_corners: bool = False) -> Tensor:
    """Resize `x` (N, C, h, w) to `size` (H, W).

    By default a pixel is an area. With `align_corners=True` a pixel is a point and the corner points coincide, as in
    some older networks. It has no effect on `nearest`.
    """
    return F.interpolate(x, size=size, mode=mode, align_corners=None if mode == "nearest" else align_corners)


def create_norm(name: str, channels: int) -> nn.Module:
    """Return a normalisation layer by name: `batch`, `group` or `none`."""
    check_known("norm", name, NORMS)
    return NORMS[name](channels)


def check_options(
    *,
    sizes: Mapping[str, Any] | None = None,
    lists: Mapping[str, Any] | None = None,
    dropout: Any = 0.0,
    switches: Mapping[str, Any] | None = None,
) -> None:
    """Raise UsageError if an option of a decoder has an invalid value; torch would accept some and fail later.

    Args:
        sizes: Widths and numbers of layers by the name of their option: whole numbers of at least 1.
        lists: Lists of such numbers, by name.
        dropout: A number of at least 0 and less than 1.
        switches: Options that are True or False, by name.
    """
    for name, value in (sizes or {}).items():
        if not _is_size(value):
            raise UsageError(f"`{name}` must be a whole number of at least 1, got {value!r}")
    for name, values in (lists or {}).items():
        if not isinstance(values, list | tuple) or not values or not all(map(_is_size, values)):
            raise UsageError(f"`{name}` must be a list of whole numbers of at least 1, got {values!r}")
    if not isinstance(dropout, Real) or isinstance(dropout, bool) or not 0 <= dropout < 1:
        raise UsageError(f"`dropout` must be a number of at least 0 and less than 1, got {dropout!r}")
    for name, value in (switches or {}).items():
        if not isinstance(value, bool):
            raise UsageError(f"`{name}` must be true or false, got {value!r}")


def _is_size(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= 1


def _largest_divisor(number: int, at_most: int) -> int:
    return next(d for d in range(at_most, 0, -1) if number % d == 0)


class ConvNormAct(nn.Sequential):
    """Convolution, normalisation, ReLU: (N, in_channels, H, W) -> (N, out_channels, H, W)."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 1, *, dilation: int = 1, norm: str = "batch"
    ) -> None:
        padding = dilation * (kernel_size // 2)
        conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=norm == "none"
        )
        super().__init__(OrderedDict(conv=conv, norm=create_norm(norm, out_channels), act=nn.ReLU(inplace=True)))


class AtrousDepthwiseConv2d(nn.Conv2d):
    """3x3 depthwise convolution without bias, fast at the rates of an ASPP: (N, C, H, W) -> the same shape.

    If the rate is not smaller than the map, only the middle of the kernel meets the map: one product per pixel. For
    other large rates oneDNN has no fast kernel; without gradients, a sum of nine shifted products takes a fraction
    of its time on a CPU.
    """

    LARGE = 7  # measured: oneDNN is slow from this rate on

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        rate = self.dilation[0]
        if is_exporting():
            return super().forward(x)
        if rate >= max(x.shape[-2:]):
            return x * _over_map(self.weight[:, 0, 1, 1])
        # In half precision each of the nine sums would be rounded, unless the compiler fuses them.
        exact = x.dtype == torch.float32 or torch.compiler.is_compiling()
        if rate >= self.LARGE and x.device.type == "cpu" and exact and not torch.is_grad_enabled():
            return self._sum_of_shifts(x)
        return super().forward(x)

    def _sum_of_shifts(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        kernel = self.weight[:, 0].float()
        total = x.float() * _over_map(kernel[:, 1, 1])
        for row, column in product((-1, 0, 1), repeat=2):
            down, right = row * self.dilation[0], column * self.dilation[0]
            if (row, column) == (0, 0) or abs(down) >= height or abs(right) >= width:
                continue
            tap = _over_map(kernel[:, row + 1, column + 1])
            if torch.compiler.is_compiling():  # becomes one kernel for all nine taps
                total = total + F.pad(x.float(), (-right, right, -down, down)) * tap
            else:
                here, there = (..., _on_map(-down), _on_map(-right)), (..., _on_map(down), _on_map(right))
                total[here].addcmul_(x[there], tap)
        return total.to(x.dtype)


def _over_map(values: Tensor) -> Tensor:
    """Return one value for each channel (C,) in the shape that multiplies maps (N, C, H, W)."""
    return values.view(-1, 1, 1)


def _on_map(shift: int) -> slice:
    """Return the slice of an axis that skips `shift` pixels at its start, or at its end if `shift` is negative."""
    return slice(max(shift, 0), min(shift, 0) or None)


class SeparableConvNormAct(nn.Sequential):
    """Depthwise 3x3 and pointwise 1x1 convolution, then normalisation and ReLU.

    Source: Chen et al., "Encoder-Decoder with Atrous Separable Convolution", 2018, section 3.1.
    Differs: No normalisation or activation between the depthwise and the pointwise convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, *, dilation: int = 1, norm: str = "batch") -> None:
        depthwise = AtrousDepthwiseConv2d(in_channels, dilation)
        pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=norm == "none")
        super().__init__(
            OrderedDict(
                depthwise=depthwise,
                pointwise=pointwise,
                norm=create_norm(norm, out_channels),
                act=nn.ReLU(inplace=True),
            )
        )


class BatchNormOfVectors(nn.BatchNorm2d):
    """Batch normalisation of pooled (N, C, 1, 1) vectors that also trains on a batch of one.

    A single value has no variance, so a batch of one is normalised by the running statistics and does not change
    them.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


@torch.no_grad()
def init_decoder(module: nn.Module) -> None:
    """Initialise convolutions by He's normal distribution with zero bias, and norms with weight 1 and bias 0.

    Source: He et al., "Delving Deep into Rectifiers", 2015, equation 10 (fan in).
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
