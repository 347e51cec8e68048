"""The FPN decoder of Panoptic FPN: a top-down pyramid, each level brought to stride 4 and summed.

Source: Kirillov et al., "Panoptic Feature Pyramid Networks", 2019, section 3.1; the pyramid is
from Lin et al., "Feature Pyramid Networks for Object Detection", 2017, section 3.
"""

from collections.abc import Sequence
from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor, nn

from segkit.errors import UsageError
from segkit.models.layers import ConvNormAct, check_options, init_decoder, resize_like


class FPN(nn.Module):
    """The decoder of Panoptic FPN: feature pyramid -> (N, channels, H/4, W/4).

    Differs: There is no 3x3 convolution after each top-down sum, as in Lin et al., since each semantic branch
    starts with one.

    Args:
        in_channels: Channels of each pyramid level, finest first.
        strides: Stride of each pyramid level relative to the image; levels finer than 4 are not used.
        pyramid_channels: Width of the top-down pathway.
        channels: Width of the semantic branches, and of the output.
        merge: `add` the levels, as in the paper, or `cat` their channels, coarsest first.
        dropout: Dropout of whole channels before the head.
        norm: Normalisation in the semantic branches: `group`, as in the paper, `batch` or `none`.
        align_corners: How the branches are upsampled; see `segkit.models.layers.resize`.

    Raises:
        UsageError: The pyramid has no level of stride 4 or more, or an option has an invalid value.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int],
        *,
        pyramid_channels: int = 256,
        channels: int = 128,
        merge: str = "add",
        dropout: float = 0.2,
        norm: str = "group",
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.levels = [i for i, stride in enumerate(strides) if stride >= 4]
        if not self.levels:
            raise UsageError(f"FPN needs features at stride 4 or more, the backbone has strides {tuple(strides)}")
        if merge not in ("add", "cat"):
            raise UsageError(f"`merge` must be 'add' or 'cat', got {merge!r}")
        sizes = {"pyramid_channels": pyramid_channels, "channels": channels}
        check_options(sizes=sizes, dropout=dropout, switches={"align_corners": align_corners})
        self.merge = merge
        self.out_channels = channels if merge == "add" else channels * len(self.levels)
        self.lateral = nn.ModuleList(nn.Conv2d(in_channels[i], pyramid_channels, 1) for i in self.levels)
        self.route = _routes([strides[i] for i in self.levels])
        self.branch = nn.ModuleList(
            SemanticBranch(pyramid_channels, channels, steps=len(route), norm=norm, align_corners=align_corners)
            for route in self.route
        )
        self.dropout = nn.Dropout2d(dropout)
        init_decoder(self)

    def forward(self, features: list[Tensor]) -> Tensor:
        laterals = [conv(features[i]) for conv, i in zip(self.lateral, self.levels, strict=True)]
        pyramid = [laterals.pop()]
        while laterals:
            lateral = laterals.pop()
            pyramid.insert(0, lateral + resize_like(pyramid[0], lateral, mode="nearest"))
        maps = [
            branch(x, [pyramid[j] for j in route])
            for branch, x, route in zip(self.branch, pyramid, self.route, strict=True)
        ]
        merged = reduce(torch.add, maps) if self.merge == "add" else torch.cat(maps[::-1], dim=1)
        return self.dropout(merged)


class SemanticBranch(nn.Sequential):
    """3x3 convolutions, each followed by a resize to the next finer level, up to the finest."""

    def __init__(self, in_channels: int, out_channels: int, *, steps: int, norm: str, align_corners: bool) -> None:
        widths = [in_channels] + [out_channels] * max(1, steps)
        super().__init__(*(ConvNormAct(i, o, 3, norm=norm) for i, o in pairwise(widths)))
        self.align_corners = align_corners

    def forward(self, x: Tensor, finer: list[Tensor]) -> Tensor:
        if not finer:
            return self[0](x)
        for conv, reference in zip(self, finer, strict=True):
            x = resize_like(conv(x), reference, align_corners=self.align_corners)
        return x


def _routes(strides: Sequence[int]) -> list[list[int]]:
    """Return for each level the finer levels that its branch is resized to: one for each smaller stride."""
    first_of = {stride: level for level, stride in reversed(list(enumerate(strides)))}
    return [[level for s, level in sorted(first_of.items(), reverse=True) if s < stride] for stride in strides]
