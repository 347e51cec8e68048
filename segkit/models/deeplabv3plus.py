"""The DeepLabV3+ decoder: ASPP on the deepest features, fused with low-level ones.

Source: Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image
Segmentation", 2018.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkit.errors import UsageError
from segkit.models.layers import (
    BatchNormOfVectors,
    ConvNormAct,
    SeparableConvNormAct,
    check_options,
    init_decoder,
    resize_like,
)

# Section 4: rates 6, 12, 18 at output stride 16, doubled at 8.
# Differs: halved at 32, which the paper does not use.
ATROUS_RATES = {8: (12, 24, 36), 16: (6, 12, 18), 32: (3, 6, 9)}


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: (N, in_channels, H, W) -> (N, channels, H, W).

    Source: Chen et al., "Rethinking Atrous Convolution", 2017, section 3.3.
    """

    def __init__(
        self,
        in_channels: int,
        atrous_rates: Sequence[int],
        *,
        channels: int = 256,
        separable: bool = True,
        dropout: float = 0.1,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList([ConvNormAct(in_channels, channels, norm=norm)])
        for rate in atrous_rates:
            if separable:
                branch = SeparableConvNormAct(in_channels, channels, dilation=rate, norm=norm)
            else:
                branch = ConvNormAct(in_channels, channels, 3, dilation=rate, norm=norm)
            self.branches.append(branch)
        self.pooled = ConvNormAct(in_channels, channels, norm=norm)
        if norm == "batch":
            self.pooled.norm = BatchNormOfVectors(channels)
        self.project = ConvNormAct(channels * (len(self.branches) + 1), channels, norm=norm)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.cat([branch(x) for branch in self.branches], dim=1)
        vector = self.pooled(x.mean(dim=(2, 3), keepdim=True))  # (N, channels, 1, 1)
        # The pooled branch has the same value at every pixel, so it adds one bias per image to the projection.
        conv = self.project.conv
        weight_maps, weight_vector = conv.weight.split([maps.shape[1], vector.shape[1]], dim=1)
        projected = F.conv2d(maps, weight_maps, conv.bias) + F.conv2d(vector, weight_vector)
        return self.dropout(self.project.act(self.project.norm(projected)))


class DeepLabV3Plus(nn.Module):
    """ASPP, upsampled and fused with the features at stride 4: feature pyramid -> (N, channels, H/4, W/4).

    Args:
        in_channels: Channels of each pyramid level, finest first.
        strides: Stride of each pyramid level relative to the image.
        channels: Width of the ASPP and of the fusion.
        low_level_channels: Width to which the features at stride 4 are reduced (section 4.1).
        atrous_rates: Dilations of the ASPP branches; by default 6, 12, 18 at output stride 16.
        aspp_separable: Use depthwise separable convolutions in the ASPP (section 3.1).
        aspp_refine: Add a 3x3 separable convolution between the ASPP and the upsampling.
        fuse_convs: Number of 3x3 convolutions after the concatenation (section 4.1: two).
        fuse_separable: Use separable convolutions there, too.
        dropout: Dropout after the ASPP projection.
        norm: `batch`, `group` or `none`.
        align_corners: How the output of the ASPP is upsampled; see `segkit.models.layers.resize`.

    Raises:
        UsageError: The pyramid has no level of stride 4, no default rates exist for its output stride, or an option has
            an invalid value.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int],
        *,
        channels: int = 256,
        low_level_channels: int = 48,
        atrous_rates: Sequence[int] | None = None,
        aspp_separable: bool = True,
        aspp_refine: bool = False,
        fuse_convs: int = 2,
        fuse_separable: bool = True,
        dropout: float = 0.1,
        norm: str = "batch",
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        if 4 not in strides:
            raise UsageError(f"DeepLabV3Plus needs features at stride 4, the backbone has strides {tuple(strides)}")
        check_options(
            sizes={"channels": channels, "low_level_channels": low_level_channels, "fuse_convs": fuse_convs},
            lists={} if atrous_rates is None else {"atrous_rates": atrous_rates},
            dropout=dropout,
            switches={
                "aspp_separable": aspp_separable,
                "aspp_refine": aspp_refine,
                "fuse_separable": fuse_separable,
                "align_corners": align_corners,
            },
        )
        self.low_level = list(strides).index(4)
        self.out_channels = channels
        if atrous_rates is None:
            if strides[-1] not in ATROUS_RATES:
                raise UsageError(
                    f"no default atrous_rates for output stride {strides[-1]}, expected 8, 16 or 32; "
                    "pass `atrous_rates`"
                )
            atrous_rates = ATROUS_RATES[strides[-1]]
        self.align_corners = align_corners
        self.aspp = ASPP(
            in_channels[-1], atrous_rates, channels=channels, separable=aspp_separable, dropout=dropout, norm=norm
        )
        self.refine = SeparableConvNormAct(channels, channels, norm=norm) if aspp_refine else nn.Identity()
        self.skip = ConvNormAct(in_channels[self.low_level], low_level_channels, norm=norm)
        widths = [channels + low_level_channels] + [channels] * fuse_convs
        self.fuse = nn.Sequential(
            *(
                SeparableConvNormAct(i, o, norm=norm) if fuse_separable else ConvNormAct(i, o, 3, norm=norm)
                for i, o in pairwise(widths)
            )
        )
        init_decoder(self)

    def forward(self, features: list[Tensor]) -> Tensor:
        low = self.skip(features[self.low_level])
        high = self.refine(self.aspp(features[-1]))
        high = resize_like(high, low, align_corners=self.align_corners)
        return self.fuse(torch.cat([high, low], dim=1))
