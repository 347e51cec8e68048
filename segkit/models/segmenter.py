"""Segmenter: backbone, decoder and head; images of any size in, logits of the same size out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from torch import Tensor, nn

from segkit.errors import UsageError
from segkit.models.backbone import Backbone
from segkit.models.layers import ConvNormAct, resize_like
from segkit.models.preprocessing import Preprocessing
from segkit.sliding_window import SlidingWindow
from segkit.training_scale import TrainingScale

if TYPE_CHECKING:
    import os

    import numpy as np
    from PIL.Image import Image

    from segkit.inference import Prediction


class Outputs(NamedTuple):
    """The result of `model(images, extras=True)`; None for a head that the model does not have."""

    logits: Tensor  # (N, num_classes, H, W)
    aux_logits: Tensor | None  # (N, num_classes, H, W)
    image_logits: Tensor | None  # (N, num_classes)


class Segmenter(nn.Module, PyTorchModelHubMixin):
    """Semantic segmentation: normalised (N, in_channels, H, W) images -> (N, num_classes, H, W) logits.

    Images are padded on the right and below to a multiple of the backbone's strides, and the logits are cropped to
    the image again: resizing by a fraction of a stride instead would shift the far end.

    Args:
        backbone: Returns the feature pyramid.
        decoder: `list[Tensor] -> Tensor`, see `segkit.testing.check_decoder`.
        head: Maps the channels of the decoder to the classes.
        class_names: Names of the classes in index order, one for each channel of the logits. A single class is label 1,
            with the sigmoid as its probability; the background is label 0.
        preprocessing: Mean, standard deviation and range of the images; by default from the backbone.
        config: The arguments of `create_model` that build this architecture; `save_model` needs them.
        align_corners: How the logits are resized to the image; see `segkit.models.layers.resize`.
        aux_head: Segmentation head on the features before the deepest, for training.
        image_head: Classifier of the whole image on the deepest features.

    Attributes:
        category_ids: The id of each class, by name, in the COCO JSON that the model was trained on; empty if unknown.
        data_rules: The settings that made the labels that the model was trained on, such as `overlap`, by name; see
            `segkit.config.DATA_RULES`. Empty if unknown.
        training_scale: The size at which training showed photographs to the model. `predict` and `Predictor` resize
            photographs to it; `model(images)` takes images that have this size already.
        window: The window in which the validation of its training cut large images; None for whole images. `predict`
            and `Predictor` cut images into the same windows.
    """

    def __init__(
        self,
        backbone: Backbone,
        decoder: nn.Module,
        head: nn.Module,
        *,
        class_names: Sequence[str],
        preprocessing: Preprocessing | None = None,
        config: dict[str, Any] | None = None,
        align_corners: bool = False,
        aux_head: nn.Module | None = None,
        image_head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = decoder
        self.head = head
        self.aux_head = aux_head
        self.image_head = image_head
        self.class_names = tuple(class_names)
        self.category_ids: dict[str, int | str] = {}
        self.data_rules: dict[str, Any] = {}
        self.preprocessing = preprocessing or backbone.preprocessing
        self.training_scale = TrainingScale()
        self.window: SlidingWindow | None = None
        self.config = config
        self.align_corners = align_corners
        self.backbone_is_frozen = False

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def forward(self, images: Tensor, *, extras: bool = False) -> Tensor | Outputs:
        """Return the logits (N, num_classes, H, W); with `extras` an Outputs, with the logits of the other heads.

        Raises:
            UsageError: `images` is not a tensor (N, in_channels, H, W) of floats.
        """
        channels = self.backbone.channels[0]
        if (
            not isinstance(images, Tensor)
            or images.ndim != 4
            or images.shape[1] != channels
            or not images.is_floating_point()
        ):
            got = f"{tuple(images.shape)} {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
            raise UsageError(
                f"a model takes normalised images (N, {channels}, H, W) float, got {got}; "
                "`model.preprocessing(images)` makes them from uint8 images, and `model.predict` takes a photograph"
            )
        padded = pad_to_multiple(images, self.backbone.size_multiple)
        features = self.backbone(padded)
        logits = self.head(self.decoder(features))
        # A decoder that ends at the size of the image needs no resize.
        if getattr(self.decoder, "out_stride", None) != 1:
            logits = resize_like(logits, padded, align_corners=self.align_corners)
        logits = _cut(logits, images)
        if not extras:
            return logits
        aux = None
        if self.aux_head is not None:
            aux = _cut(resize_like(self.aux_head(features[-2]), padded, align_corners=self.align_corners), images)
        return Outputs(logits, aux, None if self.image_head is None else self.image_head(features[-1]))

    def predict(self, photo: str | os.PathLike | np.ndarray | Image, **options: Any) -> Prediction:
        """Segment a photograph with the preprocessing and the training scale of the model, on its device.

            prediction = model.predict("photo.jpg")
            prediction.mask, prediction.probs, prediction.overlay()
            prediction.save("mask.png")

        A model in training stays in train mode.

        Args:
            photo: A file, an array (H, W, 3) uint8 RGB or a PIL image, of any size. EXIF orientations are applied.
            **options: Arguments of `segkit.Predictor`, such as `tta`, `window`, `full_size` or `crf`.

        Raises:
            UsageError: `photo` is something else, such as an array of floats.
            DataError: The file does not exist or is not an image.
        """
        from segkit.inference import predict_photo  # a floor above: models work without it

        return predict_photo(self, photo, **options)

    def freeze_backbone(self, frozen: bool = True) -> Segmenter:
        """Freeze the backbone: no gradients, and eval mode for its norms, dropout and drop-path. Or unfreeze it."""
        self.backbone_is_frozen = frozen
        self.backbone.requires_grad_(not frozen)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Segmenter:
        super().train(mode)
        if self.backbone_is_frozen:
            self.backbone.eval()
        return self

    # The hooks of PyTorchModelHubMixin: `save_pretrained` writes the same file as `save_model`. They import inside,
    # because model_file builds Segmenters and imports this module.

    def _save_pretrained(self, save_directory: Path) -> None:
        from segkit.models.model_file import SAVED_PRETRAINED, save_model

        save_model(self, save_directory / SAVED_PRETRAINED)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **unknown: Any,
    ) -> Segmenter:
        from segkit.models.model_file import SAVED_PRETRAINED, load_model

        if Path(model_id).exists():
            return load_model(model_id)
        file = hf_hub_download(
            model_id,
            SAVED_PRETRAINED,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        return load_model(file)


class SegmentationHead(nn.Conv2d):
    """A convolution from the channels of the decoder to the classes.

    Its weights start near zero, so that training starts from nearly equal probabilities.

    Args:
        in_channels: Channels of the decoder.
        num_classes: Number of classes.
        kernel_size: Side of the kernel, an odd number.
    """

    def __init__(self, in_channels: int, num_classes: int, *, kernel_size: int = 1) -> None:
        super().__init__(in_channels, num_classes, kernel_size, padding=kernel_size // 2)
        nn.init.normal_(self.weight, std=0.01)
        nn.init.zeros_(self.bias)


class AuxiliaryHead(nn.Sequential):
    """Head for deep supervision: 3x3 convolution to a quarter of the channels, dropout, classes.

    Source: Zhao et al., "Pyramid Scene Parsing Network", 2017, section 3.3.
    """

    def __init__(self, in_channels: int, num_classes: int, *, dropout: float = 0.1) -> None:
        width = max(1, in_channels // 4)
        super().__init__(
            ConvNormAct(in_channels, width, 3), nn.Dropout2d(dropout), SegmentationHead(width, num_classes)
        )


class ImageHead(nn.Sequential):
    """Classifier of the whole image by the mean of its features: (N, C, h, w) -> (N, num_classes)."""

    def __init__(self, in_channels: int, num_classes: int, *, dropout: float = 0.2) -> None:
        super().__init__(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(in_channels, num_classes)
        )


def _cut(logits: Tensor, images: Tensor) -> Tensor:
    return logits[..., : images.shape[-2], : images.shape[-1]]


def pad_to_multiple(images: Tensor, multiple: Sequence[int]) -> Tensor:
    """Pad (N, C, H, W) with zeros on the right and below to multiples of (height, width)."""
    # Not -size % multiple: the symbolic sizes of the compiler have no remainder of negative numbers.
    bottom, right = ((m - size % m) % m for size, m in zip(images.shape[-2:], multiple, strict=True))
    return F.pad(images, (0, right, 0, bottom))
