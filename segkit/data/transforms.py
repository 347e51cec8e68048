"""Augmentations by name, made of albumentations."""

import os
from collections.abc import Callable

# albumentations asks the network for its newest version unless it is told not to before the import.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2


def create_transform(name: str, *, crop: int, ignore_index: int = 255) -> A.Compose:
    """Builds the augmentation of training images.

    Args:
        name: `none` (only cropped), `flip`, `light` or `standard`, each with all that the one before it does.
        crop: Height and width of what comes out, in pixels.
        ignore_index: Label of what lies outside the image.

    Returns:
        A transform: `transform(image=(H, W, 3) uint8, mask=(H, W) uint8)`.
    """
    if name not in AUGMENTATIONS:
        raise ValueError(f"unknown augmentation {name!r}, expected one of {', '.join(AUGMENTATIONS)}")
    if crop < 1:
        raise ValueError(f"crop must be at least 1 pixel, got {crop}")
    pad = {"border_mode": cv2.BORDER_CONSTANT, "fill": 0, "fill_mask": ignore_index}
    at_least_two = A.PadIfNeeded(2, 2, **pad)  # a single row must survive being halved
    cut = [A.PadIfNeeded(crop, crop, **pad), A.RandomCrop(crop, crop)]
    return A.Compose([at_least_two, *AUGMENTATIONS[name](pad), *cut])


def _none(pad: dict[str, int]) -> list[A.BasicTransform]:
    return []


def _flip(pad: dict[str, int]) -> list[A.BasicTransform]:
    return [A.HorizontalFlip(p=0.5)]


def _light(pad: dict[str, int]) -> list[A.BasicTransform]:
    return [
        A.RandomScale((-0.4, 0.25), p=1.0),
        A.HorizontalFlip(p=0.5),
        A.RandomBrightnessContrast(0.2, 0.2, p=0.5),
    ]


def _standard(pad: dict[str, int]) -> list[A.BasicTransform]:
    return [
        A.RandomScale((-0.5, 0.5), p=1.0),
        A.HorizontalFlip(p=0.5),
        A.Affine(rotate=(-20, 20), shear=(-8, 8), p=0.3, **pad),
        A.RandomBrightnessContrast(0.2, 0.2, p=0.5),
        A.HueSaturationValue(8, 20, 10, p=0.3),
        A.GaussianBlur(blur_limit=(3, 5), p=0.1),
    ]


AUGMENTATIONS: dict[str, Callable[[dict[str, int]], list[A.BasicTransform]]] = {
    "none": _none,
    "flip": _flip,
    "light": _light,
    "standard": _standard,
}
