"""Measure how fast segkit makes folds, and how even they are.

Uses 3,272 generated images with 26,401 annotations of eleven classes, or your own COCO JSON files. Prints the seconds
to read, divide and write, and the unevenness of the split over several seeds. For comparison it also makes random
splits, and a greedy split by annotation counts; the greedy split also in the form usual in notebooks, which recomputes
all standard deviations for each image and fold.

    python benchmarks/folds.py
    python benchmarks/folds.py facade/train.json trashnet_seg/train.json
    python benchmarks/folds.py facade/train.json --images 60
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from segkit.folds import (
    ClassCounts,
    assign_folds,
    count_classes,
    one_by_one_folds,
    random_folds,
    read_fold_source,
    unevenness,
    write_fold_files,
)

IMAGES, ANNOTATIONS, SIDE = 3272, 26401, 512
# The share of each class: the first is frequent, the last has a few dozen annotations.
FREQUENCY = np.array([0.35, 0.24, 0.15, 0.06, 0.05, 0.03, 0.02, 0.02, 0.02, 0.005, 0.002])


def write_generated(file: Path, seed: int = 0) -> None:
    """Write a generated set: each image favours some classes, areas are log-normal, polygons have 12 to 60 points."""
    random = np.random.default_rng(seed)
    extra = random.multinomial(ANNOTATIONS - IMAGES, random.dirichlet(np.full(IMAGES, 0.5)))
    annotations = []
    for image, number in enumerate(1 + extra):
        theme = random.dirichlet(6 * FREQUENCY)
        for category in random.choice(len(FREQUENCY), number, p=theme):
            points, area = outline(random)
            ids = {"id": len(annotations), "image_id": image, "category_id": int(category) + 1}
            annotations.append(ids | {"segmentation": [points], "area": area, "iscrowd": 0})
    images = [{"id": i, "file_name": f"{i:05}.jpg", "height": SIDE, "width": SIDE} for i in range(IMAGES)]
    categories = [{"id": i + 1, "name": f"class {i + 1}"} for i in range(len(FREQUENCY))]
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def outline(random: np.random.Generator) -> tuple[list[float], float]:
    """Return a polygon around a circle as x, y, x, y, ... in pixels, and the area of the circle."""
    area = round(min(float(np.exp(random.normal(8, 1.6))), SIDE**2 / 2) + 1, 1)
    angles = np.linspace(0, 2 * np.pi, random.integers(12, 61), endpoint=False)
    circle = SIDE / 2 + np.sqrt(area / np.pi) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return circle.round(1).ravel().tolist(), area


def naive_one_by_one(annotations: np.ndarray, k: int) -> np.ndarray:
    """Make the greedy split, and compute every standard deviation from scratch."""
    total = np.maximum(annotations.sum(0), 1)
    sums, folds = np.zeros((k, annotations.shape[1])), np.empty(len(annotations), dtype=int)
    for image in np.argsort(-annotations.std(1), kind="stable"):
        deviations = []
        for fold in range(k):
            sums[fold] += annotations[image]
            shares = sums / total
            deviations.append(np.mean([shares[:, c].std() for c in range(shares.shape[1])]))
            sums[fold] -= annotations[image]
        folds[image] = int(np.argmin(deviations))
        sums[folds[image]] += annotations[image]
    return folds


def timed(function, *args, **kwargs):
    started = time.perf_counter()
    result = function(*args, **kwargs)
    return result, time.perf_counter() - started


def figures(counts: ClassCounts, folds: np.ndarray, k: int) -> np.ndarray:
    """Return the unevenness in percent: of images, annotations, pixels, their mean, and the sizes of the folds."""
    values = [unevenness(count, folds, k) for count in counts]
    return 100 * np.array([*values, np.mean(values), np.bincount(folds, minlength=k).std() / len(folds) * k])


def report(name: str, rows: list[np.ndarray], seconds: float) -> None:
    mean, spread = np.mean(rows, axis=0), np.std(rows, axis=0)
    cells = "  ".join(f"{m:6.2f} ±{s:4.2f}" for m, s in zip(mean, spread, strict=True))
    print(f"  {name:28} {cells}  {seconds:7.3f} s")


def measure(file: Path, k: int, seeds: int, images: int | None) -> None:
    source, reading = timed(read_fold_source, file)
    if images is not None:
        drawn = sorted(np.random.default_rng(0).permutation(len(source.images))[:images].tolist())
        lists = ("images", "annotations", "regions", "sizes")
        kept = {name: [getattr(source, name)[i] for i in drawn] for name in lists}
        source = source._replace(train_only=source.train_only[drawn], **kept)
    counts, counting = timed(count_classes, source.regions, len(source.class_names) + 1, source.masks())
    groups = np.arange(len(source.images))
    print(f"\n{file}: {len(source.images)} images, {sum(map(len, source.annotations))} annotations, k = {k}")
    print(
        f"  {'unevenness in %':28} "
        + "  ".join(f"{n:>12}" for n in ("images", "annotations", "pixels", "mean", "sizes"))
    )
    ours = [timed(assign_folds, counts, k, seed=seed) for seed in range(seeds)]
    dividing = float(np.median([seconds for _, seconds in ours]))
    report("assign_folds", [figures(counts, folds, k) for folds, _ in ours], dividing)
    chance = [timed(random_folds, groups, k, seed) for seed in range(seeds)]
    report("random", [figures(counts, folds, k) for folds, _ in chance], chance[0][1])
    greedy, seconds = timed(one_by_one_folds, counts.annotations, groups, k)
    report("greedy by annotations", [figures(counts, greedy, k)], seconds)
    naive, seconds = timed(naive_one_by_one, counts.annotations, k)
    report("the same, recomputed", [figures(counts, naive, k)], seconds)
    with tempfile.TemporaryDirectory() as out:
        _, writing = timed(write_fold_files, source, ours[0][0], k, Path(out))
    total = reading + counting + dividing + writing
    print(
        f"  read {reading:.2f} s, count {counting:.2f} s, divide {dividing:.2f} s, write {writing:.2f} s: {total:.2f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="COCO JSON files; by default a generated set")
    parser.add_argument("--k", type=int, default=5, help="number of folds")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--images", type=int, help="divide only so many images of each file, drawn at random")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = arguments.files or [Path(folder, "generated.json")]
        if not arguments.files:
            write_generated(files[0])
        for file in files:
            measure(file, arguments.k, arguments.seeds, arguments.images)


if __name__ == "__main__":
    main()
