"""Exact rewrites of trained models for inference: fewer multiplications, same result up to rounding."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from segkit.models.fpn import FPN
from segkit.models.layers import ConvNormAct, SeparableConvNormAct, resize_like
from segkit.models.segmenter import Segmenter


def fold_norms(model: nn.Module) -> None:
    """Fold the batch norms of our decoders into the convolutions before them, in place; only for eval mode."""
    for layer in model.modules():
        if isinstance(layer, ConvNormAct) and isinstance(layer.norm, nn.BatchNorm2d):
            layer.conv, layer.norm = fuse_conv_bn_eval(layer.conv, layer.norm), nn.Identity()
        elif isinstance(layer, SeparableConvNormAct) and isinstance(layer.norm, nn.BatchNorm2d):
            layer.pointwise, layer.norm = fuse_conv_bn_eval(layer.pointwise, layer.norm), nn.Identity()


def fold_fpn(model: Segmenter) -> None:
    """Fold the lateral convolutions of an FPN into its branches, in place, if the model has an FPN that fits."""
    if isinstance(model.decoder, FPN) and FoldedFPN.fits(model.decoder, model.backbone.strides):
        model.decoder = FoldedFPN(model.decoder)


class FoldedFPN(nn.Module):
    """An FPN decoder with the same output and about half the multiplications in its first convolutions.

    The top-down pathway is linear, so the first 3x3 convolution of a branch need not see the wide pyramid map
    `lateral(c) + up(coarser)`. The part of `lateral(c)` becomes one convolution of the backbone's few channels. The
    part of `up(coarser)`, in which each 2x2 block has one value, becomes four 2x2 convolutions of `coarser`, one for
    each position in the block.
    """

    def __init__(self, decoder: FPN) -> None:
        super().__init__()
        self.levels, self.route = decoder.levels, decoder.route
        self.merge, self.align_corners = decoder.merge, decoder.branch[0].align_corners
        self.lateral, self.branch = decoder.lateral, decoder.branch
        pairs = list(zip(decoder.lateral, decoder.branch, strict=True))[:-1]
        self.direct = nn.ModuleList(_compose(branch[0].conv, lateral) for lateral, branch in pairs)
        self.below = nn.ModuleList(_convolve_upsampled(branch[0].conv) for _, branch in pairs)
        for _, branch in pairs:
            branch[0].conv = nn.Identity()

    @staticmethod
    def fits(decoder: FPN, strides: tuple[int, ...]) -> bool:
        """Return whether each level doubles the stride of the one before."""
        used = [strides[level] for level in decoder.levels]
        return all(coarse == 2 * fine for fine, coarse in pairwise(used))

    def forward(self, features: list[Tensor]) -> Tensor:
        coarser = self.lateral[-1](features[self.levels[-1]])
        first = [self.branch[-1][0].conv(coarser)]  # the first convolution of each branch, finest first
        for i in reversed(range(len(self.direct))):
            x = features[self.levels[i]]
            # Add the bias of the lateral before the upsampling, so that the padding around the map stays zero.
            below = coarser + self.lateral[i].bias.view(1, -1, 1, 1)
            first.insert(0, self.direct[i](x) + _interleave(self.below[i](below)))
            if i:  # nothing needs the finest pyramid map
                lateral = F.conv2d(x, self.lateral[i].weight)
                coarser = lateral + resize_like(below, x, mode="nearest")
        maps = [self._finish(i, first) for i in range(len(first))]
        return sum(maps[1:], maps[0]) if self.merge == "add" else torch.cat(maps[::-1], dim=1)

    def _finish(self, level: int, first: list[Tensor]) -> Tensor:
        branch, x = self.branch[level], first[level]
        x = branch[0].act(branch[0].norm(x))
        for step, reference in enumerate(self.route[level]):
            if step:
                x = branch[step](x)
            x = resize_like(x, first[reference], align_corners=self.align_corners)
        return x


def _compose(conv: nn.Conv2d, lateral: nn.Conv2d) -> nn.Conv2d:
    """Return one 3x3 convolution for `conv(lateral(x))`, without the bias of the lateral."""
    composed = nn.Conv2d(lateral.in_channels, conv.out_channels, 3, padding=1, bias=conv.bias is not None)
    weight = torch.einsum("omyx,mi->oiyx", conv.weight.cpu().double(), lateral.weight.cpu().double()[..., 0, 0])
    composed.weight.data = weight.to(conv.weight)
    if conv.bias is not None:
        composed.bias.data = conv.bias.data
    return composed


def _convolve_upsampled(conv: nn.Conv2d) -> nn.Conv2d:
    """Return a 2x2 convolution of a map for a 3x3 `conv` of the map doubled by copying, see `_interleave`.

    In a row of copies (.. a a b b ..) the taps (l, m, r) around the first b meet (a, b, b), and the taps around the
    second b meet (b, b, c): two values each, with taps (l, m + r) and (l + m, r).
    """
    left, middle, right = conv.weight.cpu().double().unbind(-1)  # each (O, M, 3)
    across = [torch.stack([left, middle + right], -1), torch.stack([left + middle, right], -1)]
    phases = []
    for vertical in (0, 1):
        for part in across:
            top, centre, bottom = part.unbind(2)  # each (O, M, 2)
            rows = (top, centre + bottom) if vertical == 0 else (top + centre, bottom)
            phases.append(torch.stack(rows, 2))  # (O, M, 2, 2)
    doubled = nn.Conv2d(conv.in_channels, 4 * conv.out_channels, 2, padding=1, bias=False)
    doubled.weight.data = torch.cat(phases).to(conv.weight)
    return doubled


def _interleave(x: Tensor) -> Tensor:
    """Join phases (N, 4 C, H + 1, W + 1) to (N, C, 2 H, 2 W): phase (a, b) holds the pixels (2 i + a, 2 j + b)."""
    n, channels, height, width = x.shape
    h, w = height - 1, width - 1
    even, odd = slice(None, -1), slice(1, None)
    a, b, c, d = x.chunk(4, dim=1)
    blocks = torch.stack([a[..., even, even], b[..., even, odd], c[..., odd, even], d[..., odd, odd]], dim=-1)
    blocks = blocks.view(n, channels // 4, h, w, 2, 2).permute(0, 1, 2, 4, 3, 5)  # (N, C, H, 2, W, 2)
    return blocks.reshape(n, channels // 4, 2 * h, 2 * w)
