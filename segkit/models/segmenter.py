"""Backbone, decoder and head joined: any input size in, the same size out."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from segkit.models.backbone import Backbone
from segkit.models.layers import resize_like
from segkit.models.preprocessing import Preprocessing


class Segmenter(nn.Module):
    """Semantic segmentation: normalised (N, in_channels, H, W) images -> (N, num_classes, H, W) logits.

    Attributes:
        num_classes: Number of classes, background included.
        class_names: Their names, in index order.
        preprocessing: Turns uint8 images into the input that the backbone was trained with.
        config: The arguments of `create_model` that build this architecture, as plain data.
    """

    def __init__(
        self,
        backbone: Backbone,
        decoder: nn.Module,
        head: nn.Module,
        *,
        class_names: Sequence[str],
        preprocessing: Preprocessing,
        config: dict[str, Any],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = decoder
        self.head = head
        self.class_names = tuple(class_names)
        self.preprocessing = preprocessing
        self.config = config

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def forward(self, images: Tensor) -> Tensor:
        return resize_like(self.head(self.decoder(self.backbone(images))), images)


class SegmentationHead(nn.Conv2d):
    """A convolution from the decoder's width to the classes.

    Starts near zero, so that training begins at even probabilities.
    """

    def __init__(self, in_channels: int, num_classes: int, *, kernel_size: int = 1) -> None:
        super().__init__(in_channels, num_classes, kernel_size, padding=kernel_size // 2)
        nn.init.normal_(self.weight, std=0.01)
        nn.init.zeros_(self.bias)
