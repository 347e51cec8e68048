"""JoinedDatasets: several sources behind one another."""

import bisect
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from segkit.data.dataset import SegmentationDataset
from segkit.errors import DataError


class JoinedDatasets(SegmentationDataset):
    """The images of several data sets with the same classes, one set after the other.

    Raises:
        DataError: the sets differ in their classes or in those that they ignore.
    """

    def __init__(self, parts: Sequence[SegmentationDataset]) -> None:
        self.parts = list(parts)
        self.class_names, self.ignore_classes = parts[0].class_names, parts[0].ignore_classes
        self.transform = parts[0].transform
        for part in parts[1:]:
            if tuple(part.class_names) != tuple(self.class_names):
                raise DataError(
                    f"data sets to join differ in their classes: {', '.join(self.class_names)} / "
                    f"{', '.join(part.class_names)}"
                )
            if set(part.ignore_classes) != set(self.ignore_classes):
                raise DataError("data sets to join differ in the classes that they ignore")
        self._ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def image(self, index: int) -> np.ndarray:
        part, place = self._find(index)
        return part.image(place)

    def small_image(self, index: int, factor: int) -> np.ndarray:
        part, place = self._find(index)
        return part.small_image(place, factor)

    def mask(self, index: int) -> np.ndarray:
        part, place = self._find(index)
        return part.mask(place)

    def target(self, index: int) -> np.ndarray:
        part, place = self._find(index)
        return part.target(place)

    def name(self, index: int) -> str:
        part, place = self._find(index)
        return part.name(place)

    def _find(self, index: int) -> tuple[SegmentationDataset, int]:
        """The part that holds an image, and the place there."""
        index = range(len(self))[index]
        number = bisect.bisect_right(self._ends, index)
        return self.parts[number], index - self._ends[number] + len(self.parts[number])
