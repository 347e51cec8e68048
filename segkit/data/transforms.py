"""Augmentations by name, made of albumentations."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from segkit.errors import UsageError

# albumentations asks the network for its newest version unless it is told not to before the import.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np

Fill = dict[str, int]
Transforms = list[A.BasicTransform | A.BaseCompose]
RECOMMENDED = ("none", "flip", "light", "standard")


def create_transform(
    name: str, *, crop: int, ignore_index: int = 255, rare_classes: Sequence[int] = (), rare_crops: float = 0.0
) -> A.Compose:
    """Builds the augmentation of training images.

    Args:
        name: Ours: `none` (only cropped), `flip`, `light` or `standard`, each with all that the one before
            it does; what comes from outside the image is `ignore_index` in the mask. The two that segkit
            grew from: `seed1` (its DeepLabV3+; `seed1-fpn` its FPN) and `seed2`, which resize the image, or most
            of it, to the crop and reflect it at its borders.
        crop: Height and width of what comes out, in pixels.
        ignore_index: Label of what lies outside the image.
        rare_classes: Classes that crops are drawn around.
        rare_crops: Share of the crops that are drawn around a pixel of a rare class, where there is one; of
            our own augmentations alone.

    Returns:
        A transform: `transform(image=(H, W, 3) uint8, mask=(H, W) uint8)`.

    Raises:
        ValueError: an unknown name or a wrong number; an argument that albumentations does not know.
    """
    if name not in AUGMENTATIONS:
        raise UsageError(f"unknown augmentation {name!r}, expected one of {', '.join(AUGMENTATIONS)}")
    if crop < 1:
        raise UsageError(f"crop must be at least 1 pixel, got {crop}")
    if not 0 <= rare_crops <= 1:
        raise UsageError(f"rare_crops must be in 0..1, got {rare_crops}")
    if name not in RECOMMENDED and rare_crops:
        raise UsageError(f"rare_crops needs an augmentation that crops, one of {', '.join(RECOMMENDED)}, not {name!r}")
    with strict_arguments():
        if name not in RECOMMENDED:
            return A.Compose(AUGMENTATIONS[name](crop))
        fill = {"border_mode": cv2.BORDER_CONSTANT, "fill": 0, "fill_mask": ignore_index}
        at_least_two = A.PadIfNeeded(2, 2, **fill)  # a single row must survive being halved
        cut = [A.PadIfNeeded(crop, crop, **fill), RareCrop(crop, rare_classes, rare_crops)]
        return A.Compose([at_least_two, *AUGMENTATIONS[name](fill), *cut])


@contextmanager
def strict_arguments() -> Iterator[None]:
    """Makes an argument that albumentations does not know an error; it warns only, and goes on without it.

    Around pipelines of your own: `with strict_arguments(): A.Compose([A.RandomResizedCrop(size=(512, 512))])`.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(not valid|invalid|deprecated).*")
        try:
            yield
        except Warning as warning:
            raise UsageError(f"albumentations {A.__version__}: {warning}") from warning


class RareCrop(A.DualTransform):
    """Cuts a square; with probability `share` around a pixel of a rare class, if the mask has one.

    Every rare class in the mask is as likely as the others, and so is every pixel of it.
    """

    def __init__(self, size: int, classes: Sequence[int], share: float) -> None:
        super().__init__(p=1.0)
        self.size = size
        self.classes = tuple(classes)
        self.share = share

    @property
    def targets_as_params(self) -> list[str]:
        return ["mask"]

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        mask, random = data["mask"], self.random_generator
        spare = [length - self.size for length in mask.shape[:2]]
        corner = [int(random.integers(s + 1)) for s in spare]
        if self.share and random.random() < self.share:
            present = [c for c in self.classes if (mask == c).any()]
            if present:
                pixels = np.argwhere(mask == present[random.integers(len(present))])
                centre = pixels[random.integers(len(pixels))]
                offset = random.integers(self.size, size=2)
                corner = [int(np.clip(c - o, 0, s)) for c, o, s in zip(centre, offset, spare, strict=True)]
        return {"corner": tuple(corner)}

    def apply(self, img: np.ndarray, corner: tuple[int, int], **params: Any) -> np.ndarray:
        top, left = corner
        return img[top : top + self.size, left : left + self.size]

    def apply_to_mask(self, mask: np.ndarray, corner: tuple[int, int], **params: Any) -> np.ndarray:
        return self.apply(mask, corner)


def _none(fill: Fill) -> Transforms:
    return []


def _flip(fill: Fill) -> Transforms:
    return [A.HorizontalFlip(p=0.5)]


def _light(fill: Fill) -> Transforms:
    return [
        A.RandomScale((-0.4, 0.25), p=1.0),
        A.HorizontalFlip(p=0.5),
        A.RandomBrightnessContrast(0.2, 0.2, p=0.5),
    ]


def _standard(fill: Fill) -> Transforms:
    return [
        A.RandomScale((-0.5, 0.5), p=1.0),
        A.HorizontalFlip(p=0.5),
        A.Affine(rotate=(-20, 20), shear=(-8, 8), p=0.3, **fill),
        A.RandomBrightnessContrast(0.2, 0.2, p=0.5),
        A.HueSaturationValue(8, 20, 10, p=0.3),
        A.GaussianBlur(blur_limit=(3, 5), p=0.1),
    ]


def _shift_scale_rotate(p: float) -> A.Affine:
    """Once ShiftScaleRotate, with the defaults that it had."""
    return A.Affine(
        scale=(0.9, 1.1),
        translate_percent=(-0.0625, 0.0625),
        rotate=(-45, 45),
        keep_ratio=True,
        border_mode=cv2.BORDER_REFLECT_101,
        p=p,
    )


def _sharpness() -> A.OneOf:
    return A.OneOf([A.CLAHE(), A.Sharpen(alpha=(0.2, 0.3)), A.GaussianBlur(blur_limit=(3, 3), p=0.3)], p=1.0)


def _seed1(crop: int) -> Transforms:
    turn = A.OneOf([A.RandomRotate90(p=0.25), A.VerticalFlip(p=0.5)], p=1.0)  # one of them always: 1/3 and 2/3
    return [turn, *_seed1_cut(crop)]


def _seed1_fpn(crop: int) -> Transforms:
    return [A.VerticalFlip(p=0.25), *_seed1_cut(crop)]


def _seed1_cut(crop: int) -> Transforms:
    hole = (0.1, 0.1)  # once Cutout, whose holes all had the same size
    return [
        A.CoarseDropout(num_holes_range=(10, 10), hole_height_range=hole, hole_width_range=hole, fill=0, p=0.25),
        _shift_scale_rotate(p=0.25),
        A.RandomResizedCrop(size=(crop, crop), scale=(0.75, 1.0), p=1.0),
    ]


def _seed2(crop: int) -> Transforms:
    return [
        _sharpness(),
        A.RandomBrightnessContrast(0.15, 0.2, p=0.5),
        A.Resize(crop, crop),
        A.HorizontalFlip(p=0.5),
        _shift_scale_rotate(p=0.5),
    ]


AUGMENTATIONS: dict[str, Callable[..., Transforms]] = {
    "none": _none,
    "flip": _flip,
    "light": _light,
    "standard": _standard,
    "seed1": _seed1,
    "seed1-fpn": _seed1_fpn,
    "seed2": _seed2,
}
