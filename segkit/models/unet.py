"""The U-Net decoder: double the size from the deepest level up, and join the features of each size.

Source: Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", 2015, section 2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segkit.errors import UsageError
from segkit.models.layers import ConvNormAct, check_options, init_decoder, resize


class UNet(nn.Module):
    """The decoder of U-Net: feature pyramid that starts with the image -> (N, channels[-1], H, W).

    Differs: The convolutions are padded, so that the output is as large as the image; nearest upsampling replaces
    up-convolutions; the encoder is a backbone, and the image itself is not joined.

    Args:
        in_channels: Channels of each pyramid level, finest first.
        strides: Stride of each pyramid level relative to the image; the first must be 1.
        channels: Width of each step, deepest first: one for each doubling of the size. By default 16 times the stride
            of the step, at most 256: 256, 128, 64, 32, 16 from stride 32, and 128, 64, 32, 16 from stride 16.
        norm: `batch`, `group` or `none`.

    Attributes:
        head_kernel_size: Kernel of the segmentation head. The map has full resolution, where the other steps have
            3x3 convolutions too.

    Raises:
        UsageError: The first level is not the image, or `channels` has another length or an invalid value.
    """

    head_kernel_size = 3

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int],
        *,
        channels: Sequence[int] | None = None,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        if strides[0] != 1:
            raise UsageError(f"UNet needs the image itself (stride 1) as its first level, got strides {tuple(strides)}")
        level_of = {stride: level for level, stride in reversed(list(enumerate(strides)))}
        self.strides = [strides[-1] >> step for step in range(1, strides[-1].bit_length())]
        if channels is None:
            channels = [min(256, 16 * stride) for stride in self.strides]
        check_options(lists={"channels": channels})
        if len(channels) != len(self.strides):
            raise UsageError(
                f"UNet needs {len(self.strides)} `channels`, one for each doubling from stride {strides[-1]} to 1, "
                f"got {channels}"
            )
        self.levels = [level_of.get(stride, 0) for stride in self.strides]  # 0: nothing to join
        skips = [in_channels[level] if level else 0 for level in self.levels]
        self.steps = nn.ModuleList(
            UpStep(below, skip, width, norm=norm)
            for below, skip, width in zip([in_channels[-1], *channels[:-1]], skips, channels, strict=True)
        )
        self.out_channels = channels[-1]
        self.out_stride = 1
        init_decoder(self)

    def forward(self, features: list[Tensor]) -> Tensor:
        height, width = features[0].shape[-2:]
        x = features[-1]
        for step, level, stride in zip(self.steps, self.levels, self.strides, strict=True):
            if level:
                x = step(x, features[level].shape[-2:], features[level])
            else:
                x = step(x, (-(-height // stride), -(-width // stride)))
        return x


class UpStep(nn.Module):
    """Upsample to `size`, join the features of that size if there are any, then two 3x3 convolutions."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, *, norm: str) -> None:
        super().__init__()
        self.fuse = nn.Sequential(
            ConvNormAct(in_channels + skip_channels, out_channels, 3, norm=norm),
            ConvNormAct(out_channels, out_channels, 3, norm=norm),
        )

    def forward(self, x: Tensor, size: Sequence[int], skip: Tensor | None = None) -> Tensor:
        x = resize(x, size, mode="nearest")
        return self.fuse(x if skip is None else torch.cat([x, skip], dim=1))
