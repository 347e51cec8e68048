"""Folds: the training and the validation images of each fold of a data set."""

import os

import numpy as np

from segkit.data.dataset import ImageFiles, JoinedDatasets, SegmentationDataset, Subset
from segkit.data.image_groups import group_images, same_value, sources_by_name
from segkit.folds.assign import assign_folds
from segkit.folds.counts import ClassCounts, count_classes, count_labels
from segkit.names import NO_GROUPS

RULE = 3  # how images are divided; runs that began before it are resumed with 1 or 2


class Folds:
    """A data set divided into k folds, as `segkit folds` divides it; item i is (training images, images of fold i).

    Args:
        data: The images to divide.
        extra: Images that only train; dropped from a fold in which the same file validates.
        k: Number of folds.
        seed: Seed of the split.
        rule: 3; or 2, by which images were divided before: the names of images form no groups; or 1, before that: in
            addition, pixels are the areas of the annotations, and annotations weigh as much as pixels.
        group_by: Which names form groups that stay together, see `segkit.data.image_groups.sources_by_name`.

    Attributes:
        groups: (N,) the group of each image; each group stays in one fold.
    """

    def __init__(
        self,
        data: SegmentationDataset,
        extra: SegmentationDataset | None = None,
        *,
        k: int,
        seed: int,
        rule: int = RULE,
        group_by: str | None = None,
    ) -> None:
        self.data, self.extra, self.k, self.seed, self.group_by = data, extra, k, seed, group_by
        is_old = rule == 1 and isinstance(data, ImageFiles) and data.annotations is not None
        counts = count_classes(data.annotations, len(data.class_names)) if is_old else count_images(data)
        options = {"annotation_weights": (1.0,)} if rule == 1 else {}
        self.groups = group_by_source(data, group_by if rule > 2 else NO_GROUPS)
        self._fold_of = assign_folds(counts, k, groups=self.groups, seed=seed, **options)

    def by_rule(self, rule: int) -> "Folds":
        """Return the same images, divided by another rule."""
        return Folds(self.data, self.extra, k=self.k, seed=self.seed, rule=rule, group_by=self.group_by)

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


def group_by_source(data: SegmentationDataset, group_by: str | None = None, *, by_file: bool = True) -> np.ndarray:
    """Return (N,) the number of each image's group: images of the same file, or of one source by their names.

    Args:
        data: The images.
        group_by: See `segkit.data.image_groups.sources_by_name`.
        by_file: Whether images of the same file belong together.
    """
    paths = image_paths(data) if by_file else list(map(str, range(len(data))))
    names = [data.name(i) for i in range(len(data))]
    files = list(map(os.path.realpath, paths))  # a path may lead through a link
    return group_images(paths, labels=files, pairs=same_value(sources_by_name(names, group_by)))


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
