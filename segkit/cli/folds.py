"""folds: one COCO JSON in, training and validation JSONs of k folds out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segkit.cli.process import errors_as_sentences
from segkit.config import FoldsConfig, parse_args
from segkit.errors import DataError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from segkit.folds.counts import ClassCounts
    from segkit.folds.files import FoldSource

RANDOM_SPLITS = 10


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; `argv` is the process's own by default."""
    with errors_as_sentences("folds", FoldsConfig):
        make_folds(parse_args(FoldsConfig, argv, prog="segkit folds"))


def make_folds(config: FoldsConfig) -> None:
    """Divides the images, prints how even the folds are, and writes their files."""
    from segkit.folds.assign import assign_folds
    from segkit.folds.counts import count_classes
    from segkit.folds.files import check_fold_folder, read_fold_source, write_fold_files

    _check_input(config, check_fold_folder(config.out, overwrite=config.overwrite))
    source = read_fold_source(config.data, config.train_only)
    counts = count_classes(source.annotations, list(source.categories))
    groups = _groups(config, source)
    folds = assign_folds(counts, config.k, groups=groups, train_only=source.train_only, seed=config.seed)
    print(_describe(config, source, groups))
    labelled = ~source.train_only
    counts = type(counts)(*(count[labelled] for count in counts))
    print(_class_table(counts, folds[labelled], config.k, list(source.categories.values())))
    print(_unevenness_table(counts, folds[labelled], config.k, groups[labelled], config.seed))
    write_fold_files(source, folds, config.k, config.out, overwrite=config.overwrite)
    print(_usage(config))


def _check_input(config: FoldsConfig, old: Sequence[Path]) -> None:
    """ValueError where a file to read would be replaced, or where file names would start from two folders."""
    files = (config.data, *config.train_only)
    for file in files:
        if file.resolve() in [path.resolve() for path in old]:
            raise UsageError(f"{file} is a fold file in --out and would be replaced; choose another --out")
    elsewhere = [file for file in files if file.parent.resolve() != config.data.parent.resolve()]
    if elsewhere and config.images is None:
        raise UsageError(
            f"{elsewhere[0]} and {config.data} lie in two folders; say by --images from which folder the file names "
            "of both start"
        )


def _groups(config: FoldsConfig, source: "FoldSource") -> "np.ndarray":
    from segkit.data.image_groups import group_images, hash_images, near_pairs

    names = [image["file_name"] for image in source.images]
    labels = None if config.group_by is None else _group_labels(source, config.group_by)
    pairs = ()
    if config.near_duplicates:
        pairs = near_pairs(hash_images([_root(config) / name for name in names]))
    return group_images(names, labels=labels, pairs=pairs)


def _group_labels(source: "FoldSource", key: str) -> list[str | None]:
    """The images' values of the key; a train-only image may lack it."""

    values = [image.get(key) for image in source.images]
    for image, value, only in zip(source.images, values, source.train_only, strict=True):
        if value is None and not only:
            has = ", ".join(name for name in image if image[name] is not None)
            raise DataError(f"--group-by {key}: the image {image['file_name']} has no {key!r}, it has {has}")
    return [None if value is None else json.dumps(value, sort_keys=True) for value in values]


def _root(config: FoldsConfig) -> Path:
    return config.data.parent if config.images is None else config.images


def _describe(config: FoldsConfig, source: "FoldSource", groups: "np.ndarray") -> str:
    import numpy as np

    extra = int(source.train_only.sum())
    sizes = np.bincount(groups)
    lines = [
        f"data   {config.data}: {len(source.images) - extra} images, "
        f"{sum(map(len, source.annotations[: len(source.images) - extra]))} annotations, "
        f"{len(source.categories)} classes"
    ]
    if extra:
        lines.append(f"       {extra} more images that only train")
    if sizes.max(initial=1) > 1:
        lines.append(f"groups {(sizes > 1).sum()} of images that stay together, the largest of {sizes.max()}")
    if source.loose:
        lines.append(f"note   {source.loose} annotations belong to no image or no category and are left out")
    return "\n".join(lines)


def _class_table(counts: "ClassCounts", folds: "np.ndarray", k: int, names: Sequence[str]) -> str:
    """One line a class: its images, and its share of images and of pixels in each fold."""
    import numpy as np

    from segkit.folds.assign import fold_table

    width = max(map(len, [*names, "all images"]))
    sizes = np.bincount(folds, minlength=k)
    lines = [
        f"\nIn % of each class, images and pixels in the validation images of each fold; {100 / k:.1f} is even:",
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


def _unevenness_table(counts: "ClassCounts", folds: "np.ndarray", k: int, groups: "np.ndarray", seed: int) -> str:
    """These folds beside splits by chance and the usual greedy one, with the same groups."""
    import numpy as np

    from segkit.folds.assign import one_by_one_folds, random_folds, unevenness

    def figures(folds: "np.ndarray") -> Any:
        values = [unevenness(count, folds, k) for count in counts]
        return 100 * np.array([*values, np.mean(values)])

    chance = np.mean([figures(random_folds(groups, k, seed + i)) for i in range(RANDOM_SPLITS)], axis=0)
    rows = {
        "these folds": figures(folds),
        f"by chance, mean of {RANDOM_SPLITS}": chance,
        "greedy by annotations": figures(one_by_one_folds(counts.annotations, groups, k)),
    }
    lines = [
        "\nUnevenness: standard deviation over the folds in % of the mean, averaged over the classes; 0 is even:",
        f"  {'':<21} {'images':>12} {'annotations':>12} {'pixels':>12} {'mean':>12}",
        *(f"  {name:<21} " + " ".join(f"{value:12.2f}" for value in row) for name, row in rows.items()),
    ]
    return "\n".join(lines)


def _usage(config: FoldsConfig) -> str:
    train, valid = config.out / "train_data0.json", config.out / "valid_data0.json"
    return (
        f"\n{config.out}: train_data0.json, valid_data0.json ... valid_data{config.k - 1}.json\n"
        f"use it: python train.py --data {train} --val {valid} --images {_root(config)}"
    )
