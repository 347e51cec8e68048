"""TrainingScale: the size at which training shows photographs to a model, and at which the model works afterwards."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from segkit.errors import UsageError
from segkit.files import reduction
from segkit.names import check_known

FITS = ("stretch", "cover", "contain", "crop")
Pair = tuple[float, float]


class Resizing(NamedTuple):
    """How one photograph is resized before a model, and its prediction afterwards.

    Attributes:
        reduce: First, each square of so many pixels becomes their mean, as when training reads a photograph at 1/2, 1/4
            or 1/8 of its size.
        height: Factor of the height, this reduction included.
        width: Factor of the width, this reduction included.
    """

    reduce: int = 1
    height: float = 1.0
    width: float = 1.0

    def __call__(self, images: Tensor, scale: float = 1.0, *, multiple: int = 1, align_corners: bool = False) -> Tensor:
        """Return the input of a model (N, C, h, w) float for images (N, C, H, W) float.

        Args:
            images: Photographs, or windows of them.
            scale: Multiplies both factors.
            multiple: The sides become multiples of this.
            align_corners: See `torch.nn.functional.interpolate`.
        """
        sides = zip(images.shape[-2:], (self.height, self.width), strict=True)
        size = tuple(max(multiple, round(side * factor * scale / multiple) * multiple) for side, factor in sides)
        if self.reduce > 1:
            # Squares that the border cuts are the mean of the pixels that they have.
            images = F.avg_pool2d(images, self.reduce, ceil_mode=True, count_include_pad=False)
        return _resize(images, size, align_corners)

    def undo(self, scores: Tensor, size: Sequence[int], *, align_corners: bool = False) -> Tensor:
        """Return scores (N, C, h, w) of such an input at the size (H, W) of the images."""
        whole = tuple(-(-side // self.reduce) * self.reduce for side in size)  # with squares that the border cuts
        return _resize(scores, whole, align_corners)[..., : size[0], : size[1]]


FULL_SIZE = Resizing()


@dataclass(frozen=True)
class TrainingScale:
    """A rule for the size at which training shows a photograph to a model. By default its own size.

    It is stored in the model file. `Predictor`, and the validation in training, resize photographs by it. Random
    changes of the size, such as the ones of `light` and `standard`, are ignored if their range includes the original
    size.

    Attributes:
        decode_at_least: A photograph is first reduced to 1/2, 1/4 or 1/8: the smallest with both sides >= this. 0: off.
        size: (height, width) that it is then resized to, or None.
        fit: How it is resized to `size`: `stretch` both sides; keep their ratio and `cover` or `contain` the size;
            `crop` a part of its area at random and stretch that.
        share: Smallest and largest share of the area that `crop` cuts.
        ratio: Smallest and largest ratio of width to height that `crop` cuts.
        factor: Factors of height and width, applied last.

    Raises:
        UsageError: A value has another type or is out of range.
    """

    decode_at_least: int = 0
    size: tuple[int, int] | None = None
    fit: str = "stretch"
    share: Pair = (1.0, 1.0)
    ratio: Pair = (3 / 4, 4 / 3)
    factor: Pair = (1.0, 1.0)

    def __post_init__(self) -> None:
        if not isinstance(self.decode_at_least, Integral) or self.decode_at_least < 0:
            raise UsageError(f"`decode_at_least` must be a whole number of 0 or more, got {self.decode_at_least!r}")
        object.__setattr__(self, "decode_at_least", int(self.decode_at_least))
        check_known("fit", self.fit, FITS)
        for name in ("size", "share", "ratio", "factor"):
            value = getattr(self, name)
            if name == "size" and value is None:
                continue
            kind, plain, what = (Integral, int, "whole numbers") if name == "size" else (Real, float, "numbers")
            pair = tuple(value) if isinstance(value, list | tuple) else ()
            if len(pair) != 2 or not all(isinstance(x, kind) and 0 < x < math.inf for x in pair):
                raise UsageError(f"`{name}` of the training scale must be two positive {what}, got {value!r}")
            object.__setattr__(self, name, tuple(map(plain, pair)))  # JSON takes no numbers of numpy

    @classmethod
    def read(cls, stored: Any) -> "TrainingScale":
        """Return the scale in the header of a model file; full size for None, as in files of an older segkit.

        Raises:
            UsageError: `stored` is not a training scale.
        """
        if stored is None:
            return cls()
        names = [field.name for field in fields(cls)]
        if not isinstance(stored, dict) or not stored.keys() <= set(names):
            raise UsageError(f"`training_scale` must have {', '.join(names)}, got {stored!r}")
        return cls(**stored)

    def write(self) -> dict[str, Any] | None:
        """Return the scale in plain types, for `read`."""
        return None if self.is_full_size else asdict(self)

    @property
    def is_full_size(self) -> bool:
        """Whether every photograph keeps its size."""
        return not self.decode_at_least and self.size is None and self.factor == (1.0, 1.0)

    def of(self, height: int, width: int) -> Resizing:
        """Return how a photograph of this size is resized."""
        reduce = reduction((height, width), self.decode_at_least) if self.decode_at_least else 1
        reduced = (-(-height // reduce), -(-width // reduce))
        y, x = self._fitted(*reduced) if self.size else (1.0, 1.0)
        return Resizing(reduce, reduced[0] / height * y * self.factor[0], reduced[1] / width * x * self.factor[1])

    def _fitted(self, height: int, width: int) -> Pair:
        """Return the factors of height and width that bring a photograph to `size`."""
        y, x = self.size[0] / height, self.size[1] / width
        if self.fit == "crop":
            # The crop of the largest area is enlarged least.
            least, most = ((self.size[0] / h, self.size[1] / w) for h, w in self._crops(height, width))
            return middle(least[0], most[0]), middle(least[1], most[1])
        if self.fit != "stretch":
            y = x = max(y, x) if self.fit == "cover" else min(y, x)
        return y, x

    def _crops(self, height: int, width: int) -> tuple[Pair, Pair]:
        """Return height and width of the largest and of the smallest crop, each of a typical ratio.

        A crop whose ratio does not fit into the photograph is drawn again, so that the crops of a wide photograph are
        wide, too. If none fits, it is the largest one of the nearest ratio: see `RandomResizedCrop` of albumentations.
        """
        crops = []
        for share in sorted(self.share, reverse=True):
            low, high = max(self.ratio[0], share * width / height), min(self.ratio[1], width / height / share)
            if low <= high * (1 + 1e-9):
                ratio, area = math.sqrt(low * high), share * height * width
                crops.append((math.sqrt(area / ratio), math.sqrt(area * ratio)))
            else:
                ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
                crops.append((min(height, width / ratio), min(width, height * ratio)))
        return crops[0], crops[1]

    def __str__(self) -> str:
        parts = []
        if self.decode_at_least:
            parts.append(f"to 1/2, 1/4 or 1/8 if both sides stay at least {self.decode_at_least} pixels")
        if self.size:
            size = f"{self.size[0]} x {self.size[1]} pixels"
            shares = " to ".join(f"{100 * share:g}" for share in sorted(set(self.share)))
            words = {"cover": f"to cover {size}", "contain": f"to fit into {size}"}
            crop = f"as if {shares} % of the area became {size}"
            parts.append(words.get(self.fit, crop if self.fit == "crop" else f"to {size}"))
        if self.factor != (1.0, 1.0):
            parts.append("by " + " x ".join(f"{factor:g}" for factor in dict.fromkeys(self.factor)))
        return ", then ".join(parts) or "full size"


def training_scale_of(model: object) -> TrainingScale:
    """Return the training scale of a model; of a module that has none, full size."""
    return getattr(model, "training_scale", None) or TrainingScale()


def middle(low: float, high: float) -> float:
    """Return the factor that stands for a range of factors: 1 if it is one of them, otherwise their geometric mean."""
    return 1.0 if low * (1 - 1e-9) <= 1 <= high * (1 + 1e-9) else math.sqrt(low * high)


def _resize(x: Tensor, size: tuple[int, ...], align_corners: bool) -> Tensor:
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)
