"""TensorFlow's "same" padding without a copy of the map."""

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn

from segkit.compat import is_exporting


class SameDepthwiseConv2d(Conv2dSame):
    """timm's Conv2dSame for depthwise convolutions, which pads the kernel instead of the map.

    If the stride divides the size of the map, "same" pads one pixel more at the far end than at the near end. A
    kernel with one more row and column of zeros at its near end, and equal padding at both ends of the map, returns
    the same sums and saves a copy of the map. Maps of other sizes are padded by timm. So are all maps on a GPU, which
    has fast kernels only for 3 x 3 and 5 x 5.
    """

    @classmethod
    def from_conv(cls, conv: Conv2dSame) -> "SameDepthwiseConv2d":
        """Return a layer that shares the parameters of `conv`."""
        with torch.device("meta"):  # timm's class takes no device before 1.0.16
            same = cls(
                conv.in_channels,
                conv.out_channels,
                conv.kernel_size,
                conv.stride,
                dilation=conv.dilation,
                groups=conv.groups,
                bias=conv.bias is not None,
            )
        same.weight, same.bias = conv.weight, conv.bias
        return same

    def forward(self, x: Tensor) -> Tensor:
        size, stride = x.shape[-2:], self.stride
        if x.is_cuda or is_exporting() or any(n % s for n, s in zip(size, stride, strict=True)):
            return super().forward(x)
        total = [max(k - s, 0) for k, s in zip(self.kernel_size, stride, strict=True)]
        padding = [(t + 1) // 2 for t in total]
        weight = F.pad(self.weight, (total[1] % 2, 0, total[0] % 2, 0))
        return F.conv2d(x, weight, self.bias, stride, padding, groups=self.groups)


def pad_kernels(net: nn.Module) -> None:
    """Replace each depthwise Conv2dSame of `net` by a SameDepthwiseConv2d, in place."""
    for parent in list(net.modules()):
        for name, conv in parent.named_children():
            if type(conv) is Conv2dSame and conv.groups == conv.in_channels > 1 and conv.dilation == (1, 1):
                setattr(parent, name, SameDepthwiseConv2d.from_conv(conv))
