"""segment_dataset: the images of a data set with their truth and their prediction."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segkit.data import SegmentationDataset
from segkit.inference.predictor import Prediction, Predictor
from segkit.inference.source import SourceImage
from segkit.inference.stream import Clock, segment


class Labelled(NamedTuple):
    """An image with what it shows, (H, W) uint8 with 255 where a pixel counts for nothing, and what was predicted."""

    image: np.ndarray
    target: np.ndarray
    prediction: Prediction


@dataclass(frozen=True)
class DataImage(SourceImage):
    """An image of a data set, which reads it."""

    data: SegmentationDataset | None = None
    index: int = 0

    def read(self) -> np.ndarray:
        return self.data.image(self.index)


def segment_dataset(data: SegmentationDataset, predictor: Predictor, clock: Clock | None = None) -> Iterator[Labelled]:
    """Segments every image of a data set, in its order; few of them are in memory at a time.

    Raises:
        DataError: an image cannot be read; none is left out.
    """
    images = (DataImage(Path(data.name(i)), data=data, index=i) for i in range(len(data)))
    for index, one in enumerate(segment(images, predictor, clock)):
        if one.error is not None:
            raise one.error
        yield Labelled(one.image, data.target(index), one.prediction)
