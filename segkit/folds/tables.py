"""What is divided into folds, and how even the folds are, as text."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segkit.console import counted
from segkit.folds.assign import fold_table, one_by_one_folds, random_folds, unevenness
from segkit.folds.counts import ClassCounts
from segkit.folds.files import FoldSource

RANDOM_SPLITS = 10


def describe_source(file: Path, source: FoldSource, groups: np.ndarray) -> str:
    """Describe in a few lines what is divided: images, annotations, classes and groups, with the notes about them.

    Args:
        file: The JSON that is divided.
        source: What was read from it.
        groups: (N,) the group of each image.
    """
    extra, sizes = int(source.train_only.sum()), np.bincount(groups)
    own = len(source.images) - extra
    lines = [
        f"data   {file}: {counted(own, 'image')}, "
        f"{counted(sum(map(len, source.annotations[:own])), 'annotation')}, {counted(len(source.class_names), 'class')}"
    ]
    if extra:
        lines.append(f"       {counted(extra, 'more image')}, only for training")
    if sizes.max(initial=1) > 1:
        lines.append(f"groups {(sizes > 1).sum()} of images that stay together, the largest of {sizes.max()}")
    return "\n".join(lines + [f"note   {note}" for note in source.notes if note.severity == "note"])


def share_table(counts: ClassCounts, folds: np.ndarray, k: int, names: Sequence[str]) -> str:
    """Return one line per class: its images, and the share of its images and of its pixels in each fold.

    Args:
        counts: What the N images hold of the C classes.
        folds: (N,) the fold of each image.
        k: Number of folds.
        names: The C class names.
    """
    width = max(map(len, [*names, "all images"]))
    sizes = np.bincount(folds, minlength=k)
    lines = [
        f"In % of each class, images and pixels in the validation images of each fold; {100 / k:.1f} is even:",
        f"  {'':<{width}} {'images':>7}" + "".join(f"{f'fold {fold}':>13}" for fold in range(k)),
        f"  {'all images':<{width}} {len(folds):7}" + "".join(f"{size:13}" for size in sizes),
    ]
    images, pixels = 100 * fold_table(counts.images, folds, k), 100 * fold_table(counts.pixels, folds, k)
    for name, number, of_images, of_pixels in zip(names, counts.images.sum(0), images.T, pixels.T, strict=True):
        cells = "".join(
            f"{i:8.1f}{p:5.1f}" if number else f"{'-':>13}" for i, p in zip(of_images, of_pixels, strict=True)
        )
        lines.append(f"  {name:<{width}} {number:7.0f}{cells}")
    rare = [name for name, number in zip(names, counts.images.sum(0), strict=True) if number < k]
    if rare:
        lines.append(f"note   fewer than {k} images, so not in every fold: {', '.join(rare)}")
    return "\n".join(lines)


def unevenness_table(counts: ClassCounts, folds: np.ndarray, k: int, groups: np.ndarray, seed: int) -> str:
    """Compare folds with random splits and with the usual greedy split of the same groups; see `share_table`."""

    def figures(folds: np.ndarray) -> np.ndarray:
        values = [unevenness(count, folds, k) for count in counts]
        return 100 * np.array([*values, np.mean(values)])

    chance = np.mean([figures(random_folds(groups, k, seed + i)) for i in range(RANDOM_SPLITS)], axis=0)
    rows = {
        "these folds": figures(folds),
        f"by chance, mean of {RANDOM_SPLITS}": chance,
        "greedy by annotations": figures(one_by_one_folds(counts.annotations, groups, k)),
    }
    return "\n".join(
        [
            "Unevenness: standard deviation over the folds in % of the mean, averaged over the classes; 0 is even:",
            f"  {'':<21} {'images':>12} {'annotations':>12} {'pixels':>12} {'mean':>12}",
            *(f"  {name:<21} " + " ".join(f"{value:12.2f}" for value in row) for name, row in rows.items()),
        ]
    )
