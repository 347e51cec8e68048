"""What --folds, --fold and --train-only make of the data sets that train.py has opened."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segkit.data import CocoSegmentation, FolderSegmentation, SegmentationDataset
    from segkit.folds.counts import ClassCounts

    FileDataset = CocoSegmentation | FolderSegmentation


class Folds:
    """Images that are divided into k folds as `segkit folds` does; item i has those that train for fold i, and its own.

    Args:
        data: The images to divide.
        extra: Images that only train; one whose file validates in a fold is left out there.
        counts: What each image of `data` holds.
        k: Number of folds.
        seed: Another seed gives another split.
    """

    def __init__(
        self, data: "FileDataset", extra: "FileDataset | None", counts: "ClassCounts", *, k: int, seed: int
    ) -> None:
        from segkit.data.image_groups import group_images
        from segkit.folds.assign import assign_folds

        self.data, self.extra, self.k = data, extra, k
        self._fold_of = assign_folds(counts, k, groups=group_images(image_paths(data)), seed=seed)

    def __len__(self) -> int:
        return self.k

    def __getitem__(self, fold: int) -> tuple["SegmentationDataset", "SegmentationDataset"]:
        import numpy as np

        fold = range(self.k)[fold]
        own = self._fold_of == fold
        train, val = self.data.subset(np.flatnonzero(~own)), self.data.subset(np.flatnonzero(own))
        return add_train_only(train, val, self.extra), val

    def validated(self) -> list[list[str]]:
        """The files that validate in each fold."""
        return [image_paths(self[fold][1]) for fold in range(self.k)]


def add_train_only(
    train: "SegmentationDataset", val: "SegmentationDataset", extra: "FileDataset | None"
) -> "SegmentationDataset":
    """The training images and the extra ones behind them, without those whose file validates."""
    from segkit.data.dataset import JoinedDatasets

    if extra is None:
        return train
    held_out = set(image_paths(val))
    return JoinedDatasets([train, extra.subset([i for i, p in enumerate(image_paths(extra)) if p not in held_out])])


def image_paths(data: "SegmentationDataset") -> list[str]:
    """The files of a data set, or of a subset of one, as normal paths."""
    from segkit.data.dataset import Subset

    if isinstance(data, Subset):
        paths = image_paths(data.whole)
        return [paths[i] for i in data.indices]
    return [os.path.normpath(item.path) for item in data.items]


def count_sources(data: "FileDataset", files: Sequence[Path], roots: Sequence[Path] | None) -> "ClassCounts":
    """What each image holds: by the annotations of the JSON files, or by the masks where `files` are folders."""
    from segkit.folds.counts import count_classes, count_labels
    from segkit.folds.files import read_fold_source

    if files[0].is_dir():
        return count_labels((data.mask(i) for i in range(len(data))), len(data.class_names))
    roots = [file.parent for file in files] if not roots else [*roots] * (len(files) if len(roots) == 1 else 1)
    annotations: dict[str, list] = {}
    for file, root in zip(files, roots, strict=True):
        source = read_fold_source(file)
        for image, of_image in zip(source.images, source.annotations, strict=True):
            annotations.setdefault(os.path.normpath(root / image["file_name"]), []).append(of_image)
    # A file that is listed twice has a list for each.
    return count_classes([annotations[path].pop(0) for path in image_paths(data)], list(source.categories))
