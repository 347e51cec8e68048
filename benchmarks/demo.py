"""Measure how well the demo can be learned, and whether the colour of single pixels would be enough.

Trains the demo from random weights with three seeds, each as `python train.py --seed N` in a separate process, and
scores a classifier that sees only the colour of each pixel.

    python benchmarks/demo.py
"""

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from segkit.data import CocoSegmentation
from segkit.demo import write_demo
from segkit.metrics import ConfusionMatrix

ROOT = Path(__file__).parents[1]
BINS = 16  # bins per colour channel


def colour_bins(image: np.ndarray) -> np.ndarray:
    """Map an (H, W, 3) uint8 image to the (H, W) numbers of its colour bins."""
    red, green, blue = np.moveaxis(image.astype(np.int64) * BINS // 256, -1, 0)
    return (red * BINS + green) * BINS + blue


def colour_miou(train: CocoSegmentation, val: CocoSegmentation, *, balanced: bool) -> float:
    """Return the mIoU of predicting, for each pixel, the most frequent training class of its colour bin.

    `balanced` divides the counts of each class by its pixels first.
    """
    classes = len(train.class_names)
    counts = np.zeros((BINS**3, classes))
    for image, mask in (train[i] for i in range(len(train))):
        cells = colour_bins(image).ravel() * classes + mask.ravel()
        counts += np.bincount(cells, minlength=counts.size).reshape(counts.shape)
    label_of = (counts / counts.sum(0) if balanced else counts).argmax(1)
    confusion = ConfusionMatrix(classes)
    for image, mask in (val[i] for i in range(len(val))):
        confusion.update(label_of[colour_bins(image)], mask)
    return confusion.compute().miou


def network_miou(seed: int, folder: Path) -> tuple[float, float]:
    """Run `python train.py --seed N`; return its best validation mIoU and its wall time in seconds."""
    out = folder / f"seed{seed}"
    started = time.monotonic()
    command = [sys.executable, ROOT / "train.py", "--seed", str(seed), "--out", out]
    subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    with (out / "results.csv").open() as file:
        return max(float(row["miou"]) for row in csv.DictReader(file)), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one training for each seed")
    seeds = parser.parse_args().seeds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train, val = (CocoSegmentation(file) for file in write_demo(folder / "demo"))
        for balanced in (False, True):
            how = "balanced" if balanced else "plain"
            print(f"colour of single pixels, {how:8}  mIoU {colour_miou(train, val, balanced=balanced):.3f}")
        runs = [network_miou(seed, folder) for seed in seeds]
    for seed, (miou, seconds) in zip(seeds, runs, strict=True):
        print(f"train.py --seed {seed}  mIoU {miou:.3f}  {seconds:.0f} s")
    print(f"mean mIoU {statistics.mean(miou for miou, _ in runs):.3f}")


if __name__ == "__main__":
    main()
