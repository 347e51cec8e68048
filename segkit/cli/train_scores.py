"""The best weights of a run on its validation images: confusion matrix, and the images to look at."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch

    from segkit.data import SegmentationDataset
    from segkit.inference import Labelled
    from segkit.metrics import ConfusionMatrix, PerImageConfusion
    from segkit.training.validation import Precision

PICTURED = 4  # rows of each picture


class Scored(NamedTuple):
    """An image as a row of a picture: small, with its truth, its prediction, and a line below each."""

    image: np.ndarray
    target: np.ndarray
    mask: np.ndarray
    captions: tuple[str, str, str]


@dataclass
class Extremes:
    """The images with the highest rank among those offered; holds no more than `size`."""

    size: int
    _heap: list[tuple[tuple[float, ...], int, Scored]] = field(default_factory=list)
    _number: count = field(default_factory=count)

    def takes(self, rank: tuple[float, ...]) -> bool:
        """Whether an image of this rank would be kept for now; of equals the first ones are."""
        return len(self._heap) < self.size or rank > self._heap[0][0]

    def add(self, rank: tuple[float, ...], scored: Scored) -> None:
        """Keeps an image, in the place of the lowest where there are enough."""
        entry = (rank, -next(self._number), scored)
        if len(self._heap) < self.size:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heapreplace(self._heap, entry)

    def rows(self) -> list[Scored]:
        """From the highest rank down."""
        return [scored for _, _, scored in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]


class Gallery:
    """The worst images, the best ones and some evenly spaced, of those that are offered one after another.

    Args:
        length: How many will be offered.
        side: The longest side of what is kept of an image, in pixels.
    """

    def __init__(self, length: int, side: int) -> None:
        rows = max(1, min(PICTURED, length // 2))
        self.worst, self.best = Extremes(rows), Extremes(rows)
        self.even: list[Scored] = []
        self._side = side
        self._evenly = set(np.linspace(0, length - 1, min(PICTURED, length)).round().astype(int).tolist())

    def offer(self, index: int, name: str, labelled: "Labelled", confusion: "PerImageConfusion") -> None:
        """Keeps the image if it belongs to them; `confusion` is of this image alone."""
        scores = confusion.compute()
        miou, classes = float(scores.of_image[0]), int(np.isfinite(scores.iou[0]).sum())
        wanted = [(self.worst, (-miou,)), (self.best, (miou, classes))]  # of images that are right, the richer
        takers = [] if np.isnan(miou) else [(kept, rank) for kept, rank in wanted if kept.takes(rank)]
        if not takers and index not in self._evenly:
            return
        scored = _shrunk(labelled, name, confusion, self._side)
        for kept, rank in takers:
            kept.add(rank, scored)
        if index in self._evenly:
            self.even.append(scored)


def score_best(
    data: "SegmentationDataset", out: Path, device: "torch.device", autocast: "Precision", side: int
) -> tuple["ConfusionMatrix", Gallery]:
    """Scores the best weights of the run folder in one pass over the images, few of which are in memory at a time.

    Args:
        data: The validation images.
        out: The run folder.
        device: Where the model runs.
        autocast: Makes the context of the forward pass that the training validated with.
        side: The longest side of what is kept of an image, in pixels.
    """
    import torch

    from segkit.console import Console
    from segkit.inference import Predictor, segment_dataset
    from segkit.metrics import ConfusionMatrix, PerImageConfusion
    from segkit.models import load_model

    # In the format that it was validated in, so that the scores are the same to the last pixel.
    model = load_model(out).to(device, memory_format=torch.channels_last)
    options = {"class_names": data.class_names, "exclude": data.ignored_labels}
    total, gallery = ConfusionMatrix(len(data.class_names), **options), Gallery(len(data), side)
    with autocast():
        found = segment_dataset(data, Predictor(model, device=device, probs="none"))
        for index, labelled in enumerate(Console(verbose=True).progress(found, total=len(data))):
            confusion = PerImageConfusion(len(data.class_names), **options)
            confusion.update(labelled.prediction.mask, labelled.target)
            total += confusion.total()
            gallery.offer(index, data.name(index), labelled, confusion)
    return total, gallery


def _shrunk(labelled: "Labelled", name: str, confusion: "PerImageConfusion", side: int) -> Scored:
    from segkit.visualize import shrink
    from segkit.workflows.score_tables import image_caption

    image, target, mask = (shrink(x, side) for x in (labelled.image, labelled.target, labelled.prediction.mask))
    return Scored(image, target, mask, (name, "", image_caption(confusion, 0)))


def scored_picture(rows: Sequence[Scored], class_names: Sequence[str], cell: int = 256) -> np.ndarray:
    """A row for each image: the photograph, the truth and the prediction with its IoU.

    Args:
        rows: At least one.
        class_names: In label order.
        cell: Longest side of a picture, in pixels.
    """
    from segkit.report import label_picture

    images, targets, masks, captions = zip(*rows, strict=True)
    return label_picture(images, {"truth": targets, "prediction": masks}, class_names, captions, cell=cell)
