"""Encoders of segmentation_models_pytorch (SMP) that differ from timm's: networks of timm, changed to match.

Source: behaviour measured on SMP 0.6.0 (encoders resnet, senet, efficientnet, timm_efficientnet).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain

import timm
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from segkit.names import unknown

SMP_PREFIX = "smp:"
# The image sizes of EfficientNet-B0 to B7: Tan & Le, "EfficientNet", 2019, section 5.
EFFICIENTNET_SIZES = (224, 240, 260, 300, 380, 456, 528, 600)

Stages = tuple[tuple[str, ...], tuple[str, ...]]
RESNET: Stages = (("layer3",), ("layer4",))
EFFICIENTNET: Stages = (("blocks.3", "blocks.4"), ("blocks.5", "blocks.6"))
# In SMP's table, stride 16 of efficientnet-b0 (and only there) ends two blocks early; weights were trained with that.
EFFICIENTNET_B0: Stages = (("blocks.3", "blocks.4.0"), ("blocks.4.1", "blocks.4.2", "blocks.5", "blocks.6"))


@dataclass(frozen=True)
class Variant:
    """How an encoder differs from the network of timm with the same weights.

    Attributes:
        timm_name: The network of timm.
        stages: Names of the modules at stride 16, and names of the modules at stride 32; the last of each returns the
            map.
        options: Arguments of the network of timm.
        frozen_size: Image size for which TensorFlow's `same` padding was fixed; None for symmetric padding.
    """

    timm_name: str
    stages: Stages = RESNET
    options: Mapping[str, float] = field(default_factory=dict)
    frozen_size: int | None = None


# Options of TensorFlow's EfficientNets as ported in lukemelas/EfficientNet-PyTorch.
LUKEMELAS = {"drop_path_rate": 0.2, "bn_eps": 1e-3, "bn_momentum": 0.01}
ENCODERS: dict[str, Variant] = {
    **{f"resnet{depth}": Variant(f"resnet{depth}") for depth in (18, 34, 50, 101, 152)},
    **{name: Variant(name) for name in ("resnext50_32x4d", "resnext101_32x4d", "resnext101_32x8d")},
    **{f"se_resnet{depth}": Variant(f"legacy_seresnet{depth}") for depth in (50, 101, 152)},
    **{f"se_resnext{depth}_32x4d": Variant(f"legacy_seresnext{depth}_32x4d") for depth in (50, 101)},
    **{
        f"efficientnet-b{i}": Variant(
            f"efficientnet_b{i}", EFFICIENTNET if i else EFFICIENTNET_B0, LUKEMELAS, frozen_size=size
        )
        for i, size in enumerate(EFFICIENTNET_SIZES)
    },
    **{
        f"timm-efficientnet-b{i}": Variant(f"efficientnet_b{i}", EFFICIENTNET, {"drop_path_rate": 0.2})
        for i in range(len(EFFICIENTNET_SIZES))
    },
}


def find_variant(name: str) -> Variant:
    """Return the variant that SMP calls `name`, such as `efficientnet-b4`.

    Raises:
        UsageError: An unknown encoder.
    """
    if name not in ENCODERS:
        raise unknown("encoder", name, [*ENCODERS, "tu-<name of timm>"])
    return ENCODERS[name]


def create_smp_features(name: str, in_channels: int, output_stride: int) -> nn.Module:
    """Build the feature network of an encoder by SMP's name, with random weights and timm's keys.

    Args:
        name: SMP's name, with or without the prefix `smp:`.
        in_channels: Channels of the images.
        output_stride: Stride of the deepest features, 8, 16 or 32.

    Returns:
        (N, in_channels, H, W) -> five maps of strides 2, 4, 8, 16, 32, none above `output_stride`.
    """
    variant = find_variant(name.removeprefix(SMP_PREFIX))
    net = timm.create_model(variant.timm_name, features_only=True, in_chans=in_channels, **variant.options)
    if variant.stages is not RESNET:
        net = EfficientNetWithStem(net, variant.stages)
    _dilate_stages(net, variant, output_stride)
    if variant.frozen_size is not None:
        _freeze_same_padding(net, variant.frozen_size)
    net.pretrained_cfg = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, "input_size": (3, 224, 224)}
    return net


class EfficientNetWithStem(nn.Module):
    """timm's EfficientNet whose finest map comes from the stem instead of the first stage, which has the same size."""

    def __init__(self, net: nn.Module, stages: Stages) -> None:
        super().__init__()
        self.conv_stem, self.bn1, self.blocks = net.conv_stem, net.bn1, net.blocks
        self.feature_info = net.feature_info
        self.feature_info.info[0].update(num_chs=net.conv_stem.out_channels, module="bn1", stage=0)
        ends = ("blocks.1", "blocks.2", stages[0][-1], stages[1][-1])
        self.ends = [self._find_last_block(name) for name in ends]

    def _find_last_block(self, name: str) -> int:
        """Return the index among all blocks of the last block of a stage (`blocks.4`), or of a block (`blocks.4.0`)."""
        module = self.get_submodule(name)
        return list(chain.from_iterable(self.blocks)).index(module[-1] if isinstance(module, nn.Sequential) else module)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.bn1(self.conv_stem(images))
        maps = [x]
        for number, block in enumerate(chain.from_iterable(self.blocks)):
            x = block(x)
            if number in self.ends:
                maps.append(x)
        return maps


def _dilate_stages(net: nn.Module, variant: Variant, output_stride: int) -> None:
    """Replace strides above `output_stride` by dilation in all convolutions of their stages.

    Differs: In DeepLab and timm the first block of such a stage has the dilation of the stage before. Weights must run
    with the dilations that they were trained with.
    """
    for stride, names in zip((16, 32), variant.stages, strict=True):
        if stride <= output_stride:
            continue
        for conv in (m for name in names for m in net.get_submodule(name).modules() if isinstance(m, nn.Conv2d)):
            dilation = stride // output_stride
            conv.stride, conv.dilation = (1, 1), (dilation, dilation)
            conv.padding = tuple(dilation * (size // 2) for size in conv.kernel_size)
    for info in net.feature_info.info:
        info["reduction"] = min(info["reduction"], output_stride)


def _freeze_same_padding(net: nn.Module, size: int) -> None:
    """Pad each convolution of stride 2 as TensorFlow does for an image of `size`: symmetrically if its map is odd.

    Convolutions whose stride became a dilation are the last ones, so the sizes before them are the same as
    in the undilated network.
    """
    for name, conv in list(net.named_modules()):
        if isinstance(conv, nn.Conv2d) and conv.stride == (2, 2):
            if size % 2 == 0:
                parent, _, child = name.rpartition(".")
                setattr(net.get_submodule(parent), child, EvenSameConv2d(conv))
            size = -(-size // 2)


class EvenSameConv2d(nn.Conv2d):
    """A convolution of stride 2 with TensorFlow's `same` padding for even sizes: one more pixel right and below."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(
            conv.in_channels, conv.out_channels, conv.kernel_size, stride=2, groups=conv.groups, bias=False
        )
        self.weight = conv.weight

    def forward(self, x: Tensor) -> Tensor:
        before = (self.kernel_size[0] - 2) // 2
        after = self.kernel_size[0] - 2 - before
        return super().forward(F.pad(x, (before, after, before, after)))
