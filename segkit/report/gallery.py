"""Gallery: the images that the pictures of a run show, kept small while all validation images are scored."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

import numpy as np

from segkit.metrics import PerImageConfusion
from segkit.report.pictures import label_picture
from segkit.visualize import shrink

ROWS = 4  # images of each picture


class GalleryRow(NamedTuple):
    """An image as the row of a picture: shrunk, with its target, its prediction, and a caption below each."""

    image: np.ndarray
    target: np.ndarray
    mask: np.ndarray
    captions: tuple[str, str, str]


@dataclass
class Highest:
    """Keep the rows with the highest ranks among all that are added, at most `size` of them."""

    size: int
    _heap: list[tuple[tuple[float, ...], int, GalleryRow]] = field(default_factory=list)
    _number: count = field(default_factory=count)

    def accepts(self, rank: tuple[float, ...]) -> bool:
        """Return whether a row of this rank would be kept; of equal ranks the first ones are."""
        return len(self._heap) < self.size or rank > self._heap[0][0]

    def add(self, rank: tuple[float, ...], row: GalleryRow) -> None:
        """Keep a row, and drop the lowest if there are more than `size`."""
        entry = (rank, -next(self._number), row)
        if len(self._heap) < self.size:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heapreplace(self._heap, entry)

    def rows(self) -> list[GalleryRow]:
        """Return the rows, the highest rank first."""
        return [row for _, _, row in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]


class Gallery:
    """The images with the lowest mIoU, the images with the highest mIoU, and some evenly spaced ones.

    Args:
        length: Number of images that will be offered.
        side: Longest side of the kept images, in pixels.
    """

    def __init__(self, length: int, side: int) -> None:
        rows = max(1, min(ROWS, length // 2))
        self.worst, self.best = Highest(rows), Highest(rows)
        self.even: list[GalleryRow] = []
        self._side, self._offered = side, 0
        self._evenly = set(np.linspace(0, length - 1, min(ROWS, length)).round().astype(int).tolist())

    def offer(
        self, name: str, image: np.ndarray, target: np.ndarray, mask: np.ndarray, confusion: PerImageConfusion
    ) -> None:
        """Keep the next image if it belongs to the gallery.

        Args:
            name: What the caption calls the image.
            image: (H, W, 3) uint8 RGB.
            target: (H, W) labels; 255 is ignored.
            mask: (H, W) predicted labels.
            confusion: The counts of this image and no other.
        """
        index, self._offered = self._offered, self._offered + 1
        scores = confusion.compute()
        miou, classes = float(scores.of_image[0]), int(np.isfinite(scores.iou[0]).sum())
        # Among images with equal mIoU, such as 100 %, images with more classes are more interesting.
        ranks = [(self.worst, (-miou,)), (self.best, (miou, classes))]
        takers = [] if np.isnan(miou) else [(kept, rank) for kept, rank in ranks if kept.accepts(rank)]
        if not takers and index not in self._evenly:
            return
        small = (shrink(picture, self._side) for picture in (image, target, mask))
        row = GalleryRow(*small, (name, "", image_caption(confusion, 0)))
        for kept, rank in takers:
            kept.add(rank, row)
        if index in self._evenly:
            self.even.append(row)


def gallery_picture(rows: Sequence[GalleryRow], class_names: Sequence[str], cell: int = 256) -> np.ndarray:
    """Return a picture with a row for each image: the photograph, the target and the prediction with its IoU.

    Args:
        rows: At least one.
        class_names: Names of the classes, in label order.
        cell: Longest side of each part, in pixels.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    images, targets, masks, captions = zip(*rows, strict=True)
    return label_picture(images, {"truth": targets, "prediction": masks}, class_names, captions, cell=cell)


def image_caption(images: PerImageConfusion, image: int, count: int = 2) -> str:
    """Return the mIoU of an image and its largest confusions with their share of its pixels, one per line.

    Args:
        images: The counts of all images.
        image: Index of the image.
        count: Number of confusions.
    """
    counts = images.counts[image].cpu().numpy()
    names = (*images.class_names, "no class")
    pairs = counts[: len(names) - 1]
    wrong = np.where(np.eye(*pairs.shape, dtype=bool), 0, pairs)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    lines = [
        f"{names[truth]} as {names[predicted]}: {100 * wrong[truth, predicted] / pairs.sum():.1f} %"
        for truth, predicted in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[truth, predicted]
    ]
    return "\n".join([f"mIoU {100 * images.compute().of_image[image]:.1f} %", *lines])
