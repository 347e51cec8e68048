"""Folds: the training and the validation images of each fold of a data set."""

import os

import numpy as np

from segkit.data.dataset import ImageFiles, JoinedDatasets, SegmentationDataset, Subset
from segkit.data.image_groups import group_images
from segkit.folds.assign import assign_folds
from segkit.folds.counts import ClassCounts, count_classes, count_labels

RULE = 2  # how images are divided; with 1, runs that began before rule 2 are resumed


class Folds:
    """A data set divided into k folds, as `segkit folds` divides it; item i is (training images, images of fold i).

    Args:
        data: The images to divide.
        extra: Images that only train; dropped from a fold in which the same file validates.
        k: Number of folds.
        seed: Seed of the split.
        rule: 2; or 1, by which images were divided before: pixels are the areas of the annotations, and annotations
            weigh as much as pixels.
    """

    def __init__(
        self,
        data: SegmentationDataset,
        extra: SegmentationDataset | None = None,
        *,
        k: int,
        seed: int,
        rule: int = RULE,
    ) -> None:
        self.data, self.extra, self.k, self.seed = data, extra, k, seed
        is_old = rule == 1 and isinstance(data, ImageFiles) and data.annotations is not None
        counts = count_classes(data.annotations, len(data.class_names)) if is_old else count_images(data)
        options = {"annotation_weights": (1.0,)} if rule == 1 else {}
        paths = image_paths(data)
        groups = group_images(paths, labels=list(map(os.path.realpath, paths)))  # a path may lead through a link
        self._fold_of = assign_folds(counts, k, groups=groups, seed=seed, **options)

    def by_rule(self, rule: int) -> "Folds":
        """Return the same images, divided by another rule."""
        return Folds(self.data, self.extra, k=self.k, seed=self.seed, rule=rule)

    def __len__(self) -> int:
        return self.k

    def __getitem__(self, fold: int) -> tuple[SegmentationDataset, SegmentationDataset]:
        fold = range(self.k)[fold]
        own = self._fold_of == fold
        train, val = self.data.subset(np.flatnonzero(~own)), self.data.subset(np.flatnonzero(own))
        return add_train_only(train, val, self.extra), val

    def validated(self) -> list[list[str]]:
        """Return the files that validate in each fold."""
        return [image_paths(self[fold][1]) for fold in range(self.k)]


def count_images(data: SegmentationDataset) -> ClassCounts:
    """Count what each image holds: the pixels of its mask, and its annotations if the set has some."""
    masks = (data.whole_mask(i) for i in range(len(data)))
    if isinstance(data, ImageFiles) and data.annotations is not None:
        return count_classes(data.annotations, len(data.class_names), masks)
    return count_labels(masks, len(data.class_names))


def add_train_only(
    train: SegmentationDataset, val: SegmentationDataset, extra: SegmentationDataset | None
) -> SegmentationDataset:
    """Return the training images followed by the extra ones, without extra images whose file validates."""
    if extra is None:
        return train
    # Files may be named by a relative path in one set, and by an absolute one or a link in the other.
    held_out = set(map(os.path.realpath, image_paths(val)))
    kept = [i for i, path in enumerate(image_paths(extra)) if os.path.realpath(path) not in held_out]
    return JoinedDatasets([train, extra.subset(kept)])


def image_paths(data: SegmentationDataset) -> list[str]:
    """Return the path of each image, normalised; the name of an image that is not a file."""
    if isinstance(data, Subset):
        paths = image_paths(data.whole)
        return [paths[i] for i in data.indices]
    if isinstance(data, JoinedDatasets):
        return [path for part in data.parts for path in image_paths(part)]
    if isinstance(data, ImageFiles):
        return [os.path.normpath(item.path) for item in data.items]
    return [data.name(i) for i in range(len(data))]
