"""Augmentations by name, made of albumentations.

To use your own augmentation in `create_transform` and `segkit.train(augment="turn")`, add it to `AUGMENTATIONS`:

    AUGMENTATIONS["turn"] = Augmentation(lambda crop: [A.RandomRotate90(), A.RandomScale((-0.3, 0.3), p=1.0)])
"""

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import cv2
import numpy as np

from segkit.errors import UsageError
from segkit.labels import IGNORE_INDEX
from segkit.names import check_known
from segkit.training_scale import TrainingScale, middle

_NO_UPDATE = "NO_ALBUMENTATIONS_UPDATE"


@contextmanager
def _without_update_check() -> Iterator[None]:
    """Keep albumentations from asking the network for its newest version, which it does while it is imported."""
    before = os.environ.get(_NO_UPDATE)
    os.environ[_NO_UPDATE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_NO_UPDATE]
        else:
            os.environ[_NO_UPDATE] = before


with _without_update_check():
    import albumentations as A
    from albumentations.augmentations.crops.transforms import BaseCrop

Transforms = list[A.BasicTransform | A.BaseCompose]
_log = logging.getLogger(__name__)
FILL = {"border_mode": cv2.BORDER_CONSTANT, "fill": 0, "fill_mask": IGNORE_INDEX}  # pixels outside the image


class Augmentation(NamedTuple):
    """An entry of `AUGMENTATIONS`.

    Attributes:
        create: Function from the side of the crop in pixels to a list of albumentations' transforms.
        resizes: Whether the result of these transforms is the crop. If not, it may have any size: `create_transform`
            pads it, cuts a random crop out of it, and can draw the crop around a rare class.
        scale: Function from the side of the crop to the `TrainingScale` of these transforms. By default it is derived
            from them, see `training_scale`.
    """

    create: Callable[[int], Transforms]
    resizes: bool = False
    scale: Callable[[int], TrainingScale] | None = None


def create_transform(name: str, *, crop: int, rare_classes: Sequence[int] = (), rare_crops: float = 0.0) -> A.Compose:
    """Create the augmentation of training images.

    Args:
        name: A name of `AUGMENTATIONS`: `none` (only crops), `flip`, `light` or `standard`; each does more than the one
            before it. Pixels from outside the image are 255 in the mask. Or the augmentations of two competition
            solutions, which resize most of the image to the crop and reflect it at its borders: `seed1` (its
            DeepLabV3+; `seed1-fpn` its FPN) and `seed2`.
        crop: Height and width of the result, in pixels.
        rare_classes: Classes that crops are drawn around.
        rare_crops: Share of the crops that are drawn around a pixel of a rare class, if the image has one. Only for
            augmentations whose crops are drawn here (not `resizes`, see `Augmentation`).

    Returns:
        A transform: call it as `transform(image=image, mask=mask)` with (H, W, 3) and (H, W) uint8.

    Raises:
        UsageError: The name is unknown, a number is out of range, or albumentations does not know an argument.
    """
    check_known("augmentation", name, AUGMENTATIONS)
    if crop < 1:
        raise UsageError(f"`crop` must be at least 1 pixel, got {crop}")
    if not 0 <= rare_crops <= 1:
        raise UsageError(f"`rare_crops` must be in 0..1, got {rare_crops}")
    augmentation = AUGMENTATIONS[name]
    if augmentation.resizes and rare_crops:
        cropped = [known for known, other in AUGMENTATIONS.items() if not other.resizes]
        raise UsageError(f"`rare_crops` needs an augmentation that crops, one of {', '.join(cropped)}, not {name!r}")
    os.environ.setdefault(_NO_UPDATE, "1")  # loader workers that are spawned import albumentations again
    with strict_arguments():
        transforms = augmentation.create(crop)
        scale = training_scale(A.Compose(transforms)) if augmentation.scale is None else augmentation.scale(crop)
        if not augmentation.resizes:
            at_least_two = A.PadIfNeeded(2, 2, **FILL)  # so that an image of one row can be halved
            cut = [A.PadIfNeeded(crop, crop, **FILL), RareCrop(crop, rare_classes, rare_crops)]
            transforms = [at_least_two, *transforms, *cut]
        whole = A.Compose(transforms)
    whole.training_scale = scale
    return whole


def training_scale(transform: Callable[..., Any]) -> TrainingScale:
    """Return how an augmentation resizes whole images, so that a model can be used at the scale it was trained at.

    It follows from `Resize`, `RandomResizedCrop`, `SmallestMaxSize`, `LongestMaxSize`, `RandomScale` and `Affine` of
    albumentations. Transforms that are not applied to every image are ignored, because the model also learns without
    them. If the scale depends on an earlier crop, or on which of several transforms is chosen, it is unknown: a warning
    is logged, and models work at full size. For such an augmentation, or your own function, set its attribute
    `training_scale`.
    """
    stated = getattr(transform, "training_scale", None)
    if stated is not None:
        return stated
    scale, is_cut = TrainingScale(), False
    for step in _always_applied(transform):
        size = _size_after(step)
        if _is_unknown(step) or (size and is_cut):
            _log.warning(
                "the scale at which %s shows images is unknown, so that the model is validated and used at full size; "
                "to change that, set `training_scale` of the augmentation",
                type(step).__name__,
            )
            return TrainingScale()
        is_cut = is_cut or isinstance(step, _CUTS)
        scale = TrainingScale(**size) if size else scale
        y, x = _factors(step)
        scale = replace(scale, factor=(scale.factor[0] * y, scale.factor[1] * x))
    return scale


_CUTS = (BaseCrop, A.CropAndPad, A.Pad, A.PadIfNeeded)  # after them, the sides are not the sides of the whole image
_UNKNOWN = (A.RandomSizedCrop, A.RandomSizedBBoxSafeCrop)


def _always_applied(step: Any) -> Iterator[A.BasicTransform | A.BaseCompose]:
    """Yield the transforms that are applied to every image, and the choices among several."""
    if getattr(step, "p", 0) < 1:
        return
    if isinstance(step, A.Compose | A.Sequential):
        for inner in step.transforms:
            yield from _always_applied(inner)
    else:
        yield step


def _is_unknown(step: A.BasicTransform | A.BaseCompose) -> bool:
    """Return whether a transform, or one of several, resizes images by a rule that `TrainingScale` does not have."""
    if isinstance(step, A.BaseCompose):
        # Any of them may be chosen, no matter what its own probability is.
        return any(_is_unknown(one) or _size_after(one) or _factors(one) != (1.0, 1.0) for one in step.transforms)
    if isinstance(step, A.SmallestMaxSize | A.LongestMaxSize):
        return not _size_after(step)
    return isinstance(step, _UNKNOWN) or (isinstance(step, A.CropAndPad) and step.keep_size)


def _size_after(step: A.BasicTransform | A.BaseCompose) -> dict[str, Any]:
    """Return the fields of a `TrainingScale` after a transform that resizes to a size; none for other transforms."""
    if isinstance(step, A.Resize):
        return {"size": (step.height, step.width)}
    if isinstance(step, A.RandomResizedCrop):
        return {"size": step.size, "fit": "crop", "share": step.scale, "ratio": step.ratio}
    if isinstance(step, A.SmallestMaxSize | A.LongestMaxSize):
        size = step.max_size_hw
        if step.max_size is not None:
            sizes = step.max_size if isinstance(step.max_size, Sequence) else [step.max_size]  # one of them is drawn
            size = (round(math.sqrt(min(sizes) * max(sizes))),) * 2
        if None not in size:  # the rule for one side only
            return {"size": size, "fit": "cover" if isinstance(step, A.SmallestMaxSize) else "contain"}
    return {}


def _factors(step: A.BasicTransform | A.BaseCompose) -> tuple[float, float]:
    """Return typical factors of height and width for a transform that draws them at random."""
    if isinstance(step, A.RandomScale):
        low, high = step.scale_limit
        return (middle(1 + low, 1 + high),) * 2
    if isinstance(step, A.Affine):
        return middle(*step.scale["y"]), middle(*step.scale["x"])
    return 1.0, 1.0


@contextmanager
def strict_arguments() -> Iterator[None]:
    """Raise UsageError for arguments that albumentations does not know, instead of its warning.

    Use it around your own pipelines: `with strict_arguments(): A.Compose([A.RandomResizedCrop(size=(512, 512))])`.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(not valid|invalid|deprecated).*")
        try:
            yield
        except Warning as warning:
            raise UsageError(f"albumentations {A.__version__}: {warning}") from warning


class RareCrop(A.DualTransform):
    """Crop a square; with probability `share` around a pixel of a rare class, if the mask has one.

    All rare classes in the mask are equally likely, and so are all pixels of a class.

    Args:
        size: Height and width of the crop, in pixels.
        classes: The rare classes.
        share: Probability of a crop around a rare class, 0 to 1.
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


def _none(crop: int) -> Transforms:
    return []


def _flip(crop: int) -> Transforms:
    return [A.HorizontalFlip(p=0.5)]


def _light(crop: int) -> Transforms:
    return [
        A.RandomScale((-0.4, 0.25), p=1.0),
        A.HorizontalFlip(p=0.5),
        A.RandomBrightnessContrast(0.2, 0.2, p=0.5),
    ]


def _standard(crop: int) -> Transforms:
    return [
        A.RandomScale((-0.5, 0.5), p=1.0),
        A.HorizontalFlip(p=0.5),
        A.Affine(rotate=(-20, 20), shear=(-8, 8), p=0.3, **FILL),
        A.RandomBrightnessContrast(0.2, 0.2, p=0.5),
        A.HueSaturationValue(8, 20, 10, p=0.3),
        A.GaussianBlur(blur_limit=(3, 5), p=0.1),
    ]


def _shift_scale_rotate(p: float) -> A.Affine:
    """Return the former ShiftScaleRotate of albumentations, with its defaults."""
    return A.Affine(
        scale=(0.9, 1.1),
        translate_percent=(-0.0625, 0.0625),
        rotate=(-45, 45),
        keep_ratio=True,
        border_mode=cv2.BORDER_REFLECT_101,
        p=p,
    )


def _sharpness() -> A.OneOf:
    sigma = 1 / math.sqrt(2 * math.log(2))  # the kernel is [0.25, 0.5, 0.25], as it used to be in OpenCV
    blur = A.GaussianBlur(blur_limit=(3, 3), sigma_limit=(sigma, sigma), p=0.3)
    return A.OneOf([A.CLAHE(), A.Sharpen(alpha=(0.2, 0.3)), blur], p=1.0)


def _seed1(crop: int) -> Transforms:
    turn = A.OneOf([A.RandomRotate90(p=0.25), A.VerticalFlip(p=0.5)], p=1.0)  # always one: 1/3 and 2/3
    return [turn, *_seed1_cut(crop)]


def _seed1_fpn(crop: int) -> Transforms:
    return [A.VerticalFlip(p=0.25), *_seed1_cut(crop)]


def _seed1_cut(crop: int) -> Transforms:
    hole = (0.1, 0.1)  # it used to be Cutout, with holes of one size
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


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": Augmentation(_none),
    "flip": Augmentation(_flip),
    "light": Augmentation(_light),
    "standard": Augmentation(_standard),
    "seed1": Augmentation(_seed1, resizes=True),
    "seed1-fpn": Augmentation(_seed1_fpn, resizes=True),
    "seed2": Augmentation(_seed2, resizes=True),
}
