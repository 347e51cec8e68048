"""The pictures of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no window is opened, so a machine without a screen will do

import matplotlib.pyplot as plt
import numpy as np

from segkit.visualize import create_palette, grid, legend, overlay


def save_curves(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draws losses, mIoU and pixel accuracy, and learning rate over the epochs."""
    figure, (losses, scores, rates) = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    for name, label in (("train_loss", "training"), ("val_loss", "validation")):
        losses.plot(*_points(history, name), marker=".", label=label)
    losses.set_title("loss")
    for name, label in (("miou", "mIoU"), ("pixel_accuracy", "pixel accuracy")):
        scores.plot(*_points(history, name), marker=".", label=label)
    scores.set(title="validation scores", ylim=(0, 1))
    rates.plot(*_points(history, "lr"), marker=".", color="tab:gray")
    rates.set(title="learning rate", ylim=(0, None))
    for axes in (losses, scores, rates):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    losses.legend()
    scores.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _points(history: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    """The epochs that have a value, and the values."""
    rows = [row for row in history if row[name] == row[name]]
    return [row["epoch"] for row in rows], [row[name] for row in rows]


def save_class_iou(class_names: Sequence[str], iou: Sequence[float], path: Path) -> None:
    """Draws the IoU of each class as a bar, best first; a class that does not occur gets none."""
    order = np.argsort(-np.nan_to_num(np.asarray(iou), nan=-1.0))
    values = np.asarray(iou)[order]
    figure, axes = plt.subplots(figsize=(7, 1 + 0.32 * len(values)), layout="constrained")
    bars = axes.barh([class_names[i] for i in order], 100 * np.nan_to_num(values), color="tab:blue")
    axes.bar_label(bars, ["-" if np.isnan(v) else f"{100 * v:.1f}" for v in values], padding=3)
    axes.invert_yaxis()
    axes.set(xlim=(0, 108), xlabel="IoU in %", title=f"IoU of each class, mean {100 * np.nanmean(values):.1f} %")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def batch_picture(images: np.ndarray, target: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Training crops as the model sees them, with their target, and the names of the classes.

    Args:
        images: (N, H, W, 3) uint8 RGB.
        target: (N, H, W) labels; ignored pixels are white.
        class_names: In label order.
    """
    palette = create_palette(len(class_names))
    cells = [overlay(image, mask, palette, opacity=0.45) for image, mask in zip(images, target, strict=True)]
    return _with_names(grid(cells, columns=min(4, len(cells))), class_names, palette)


def prediction_picture(
    images: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    class_names: Sequence[str],
) -> np.ndarray:
    """One row for each photograph: as it is, with the truth, with the prediction."""
    return label_picture(images, {"truth": targets, "prediction": predictions}, class_names)


def label_picture(
    images: Sequence[np.ndarray],
    masks: Mapping[str, Sequence[np.ndarray]],
    class_names: Sequence[str],
    captions: Sequence[Sequence[str]] = (),
) -> np.ndarray:
    """One row for each photograph: as it is, then with each of its label maps.

    Args:
        images: (H, W, 3) uint8 RGB.
        masks: Label maps (H, W) of all photographs, by the title of their column; ignored pixels are white.
        class_names: In label order.
        captions: Lines below the pictures of each row: of the photograph, then of each label map.
    """
    palette = create_palette(len(class_names))
    cells = []
    for image, *maps in zip(images, *masks.values(), strict=True):
        cells += [image, *(overlay(image, mask, palette) for mask in maps)]
    lines = [line for row in captions for line in _even(row)]
    sheet = grid(cells, columns=1 + len(masks), titles=("photograph", *masks), captions=lines)
    return _with_names(sheet, class_names, palette)


def _even(captions: Sequence[str]) -> list[str]:
    """The captions of a row, all with as many lines as the longest."""
    most = max(caption.count("\n") for caption in captions)
    return [caption + "\n" * (most - caption.count("\n")) for caption in captions]


def _with_names(sheet: np.ndarray, class_names: Sequence[str], palette: np.ndarray) -> np.ndarray:
    names = legend(class_names, range(1, len(class_names)), palette, sheet.shape[1])
    return np.concatenate([sheet, names])
