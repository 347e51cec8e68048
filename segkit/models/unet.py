"""The U-Net decoder: from the deepest level up, each step joined with the features of the same size.

Source: Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", 2015, section 2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segkit.models.layers import ConvNormAct, init_decoder, resize_like


class UNet(nn.Module):
    """Takes a feature pyramid, finest first and the image itself at its head; gives (N, channels[-1], H, W).

    Differs: padded convolutions, so that the output is as large as the image; nearest upsampling in
    place of up-convolutions; the encoder is a backbone, and the image itself is not joined.

    Args:
        in_channels: Channels of each pyramid level.
        strides: Stride of each pyramid level against the image; the first must be 1.
        channels: Width of each step, deepest first; the last ones are used where the pyramid is shorter.
        norm: `batch`, `group` or `none`.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int],
        *,
        channels: Sequence[int] = (256, 128, 64, 32, 16),
        norm: str = "batch",
    ) -> None:
        super().__init__()
        steps = len(in_channels) - 1
        if len(channels) < steps:
            raise ValueError(f"UNet needs {steps} channels for strides {tuple(strides)}, got {tuple(channels)}")
        widths = list(channels)[-steps:]
        skips = [*in_channels[-2:0:-1], 0]  # deepest first; none at full resolution
        self.steps = nn.ModuleList(
            UpStep(below, skip, width, norm=norm)
            for below, skip, width in zip([in_channels[-1], *widths[:-1]], skips, widths, strict=True)
        )
        self.out_channels = widths[-1]
        init_decoder(self)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = features[-1]
        for step, finer in zip(self.steps, features[-2::-1], strict=True):
            x = step(x, finer)
        return x


class UpStep(nn.Module):
    """Upsample to the size of `finer`, join its channels where `skip_channels` > 0, two 3x3 convolutions."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, *, norm: str) -> None:
        super().__init__()
        self.joins = skip_channels > 0
        self.fuse = nn.Sequential(
            ConvNormAct(in_channels + skip_channels, out_channels, 3, norm=norm),
            ConvNormAct(out_channels, out_channels, 3, norm=norm),
        )

    def forward(self, x: Tensor, finer: Tensor) -> Tensor:
        x = resize_like(x, finer, mode="nearest")
        return self.fuse(torch.cat([x, finer], dim=1) if self.joins else x)
