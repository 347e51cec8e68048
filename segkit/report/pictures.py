"""Charts and pictures of a run."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segkit.errors import MissingPackageError
from segkit.files import write_whole
from segkit.labels import background_of, foreground_of
from segkit.text import drawable_names, font_files
from segkit.visualize import create_palette, grid, legend, overlay

try:
    from matplotlib import font_manager
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    MATPLOTLIB_FAULT = None
except Exception as error:  # a broken installation raises errors of all kinds
    MATPLOTLIB_FAULT = f"matplotlib cannot be imported: {error}"

OWN_FONT = "DejaVu Sans"  # comes with matplotlib
LONGEST_NAME = 24  # letters of a class name next to a bar or a row
NUMBERED = 60  # largest number of classes with numbers in the cells of the confusion matrix


def save_curves(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw losses, scores and learning rate over the epochs; dashed lines are of the averaged weights.

    Args:
        history: The rows of results.csv; epochs without a value are skipped.
        path: The PNG file.
    """
    figure = _new_figure(figsize=(13, 3.6), layout="constrained")
    losses, scores, rates = figure.subplots(1, 3)
    for axes, name, label in (
        (losses, "train_loss", "training"),
        (losses, "val_loss", "validation"),
        (scores, "miou", "mIoU"),
        (scores, "pixel_accuracy", "pixel accuracy"),
    ):
        (line,) = axes.plot(*_points(history, name), marker=".", label=label)
        if history and f"ema_{name}" in history[0]:
            averaged = {"color": line.get_color(), "linestyle": "--", "label": f"{label}, averaged weights"}
            axes.plot(*_points(history, f"ema_{name}"), marker=".", **averaged)
    losses.set_title("loss")
    scores.set(title="validation scores", ylim=(0, 1))
    rates.plot(*_points(history, "lr"), marker=".", color="tab:gray")
    rates.set(title="learning rate", ylim=(0, None))
    for axes in (losses, scores, rates):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)  # whole ones, however few
        axes.grid(alpha=0.3)
    losses.legend()
    scores.legend()
    _save(figure, path)


def _points(history: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    """Return the epochs that have a value, and the values."""
    rows = [row for row in history if row[name] == row[name]]
    return [row["epoch"] for row in rows], [row[name] for row in rows]


def save_class_iou(class_names: Sequence[str], iou: Sequence[float], path: Path, *, miou: float | None = None) -> None:
    """Draw the IoU of each class as a bar, best first; a class that does not occur has no bar.

    Args:
        class_names: Names of the classes, in label order.
        iou: IoU of each class, in [0, 1]; NaN for a class that does not occur.
        path: The PNG file.
        miou: The mean in the title; by default the mean over all classes with a value.
    """
    miou = np.nanmean(iou) if miou is None else miou
    order = np.argsort(-np.nan_to_num(np.asarray(iou), nan=-1.0))
    values = np.asarray(iou)[order]
    figure = _new_figure(figsize=(7, 1 + 0.32 * len(values)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(range(len(values)), 100 * np.nan_to_num(values), color="tab:blue")
    axes.bar_label(bars, ["-" if np.isnan(v) else f"{100 * v:.1f}" for v in values], padding=3)
    names, fonts = _drawable(class_names)
    axes.set_yticks(range(len(values)), [names[i] for i in order], parse_math=False, fontfamily=fonts)
    axes.invert_yaxis()
    axes.set(xlim=(0, 108), xlabel="IoU in %", title=f"IoU of each class, mean {100 * miou:.1f} %")
    _save(figure, path)


def save_confusion(matrix: np.ndarray, class_names: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix in percent of each true class; the row of a class without pixels is gray.

    Args:
        matrix: (C, C) pixel counts: rows are the truth, columns the prediction.
        class_names: Names of the classes, in label order.
        path: The PNG file.
    """
    total = matrix.sum(1, keepdims=True)
    shares = np.divide(matrix, total, out=np.full(matrix.shape, np.nan), where=total > 0)
    side = max(2.2, min(0.34, 24 / len(matrix)) * len(matrix))
    figure = _new_figure(figsize=(side + 2.4, side + 1.6))
    axes = figure.subplots()
    axes.set_facecolor("0.85")
    # The square root makes small confusions visible: 5 % of a class is seen at a glance.
    axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    names, fonts = _drawable(class_names)
    axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False, fontfamily=fonts)
    axes.set_yticks(range(len(names)), names, parse_math=False, fontfamily=fonts)
    axes.set(xlabel="prediction", ylabel="truth", title="Share of each true class, in %")
    axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    size = 9 if len(names) <= 4 else 7
    for row, column in zip(*np.nonzero(np.nan_to_num(shares) >= 0.005), strict=True) if len(names) <= NUMBERED else ():
        share = shares[row, column]
        colour = "white" if share > 0.4 else "black"
        axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=size, color=colour)
    _save(figure, path, bbox_inches="tight")


def _new_figure(**options: Any) -> "Figure":
    """Return an empty figure; raise MissingPackageError if matplotlib cannot be imported."""
    if MATPLOTLIB_FAULT is not None:
        raise MissingPackageError(MATPLOTLIB_FAULT)
    return Figure(**options)


def _drawable(class_names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names as charts show them, see `drawable_names`, and the families of the fonts that draw them.

    The font of matplotlib comes first. It has no Chinese or Korean characters, for example: they need a font of the
    system, which matplotlib may not know yet.
    """
    shown = drawable_names(list(map(_short, class_names)))
    known = {entry.fname: entry.name for entry in font_manager.fontManager.ttflist}
    families = [OWN_FONT]
    for file in map(str, font_files(shown)):
        if file not in known:
            font_manager.fontManager.addfont(file)
            known[file] = font_manager.fontManager.ttflist[-1].name
        families.append(known[file])
    return shown, families


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 2]}.."


def _save(figure: "Figure", path: Path, **options: str) -> None:
    stream = io.BytesIO()
    figure.savefig(stream, dpi=110, format="png", **options)
    write_whole(path, stream.getvalue())


def batch_picture(images: np.ndarray, target: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Return training crops as the model sees them, overlaid with their labels, above a legend.

    Args:
        images: (N, H, W, 3) uint8 RGB.
        target: (N, H, W) labels; ignored pixels are white.
        class_names: Names of the classes, in label order.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    background = background_of(class_names)
    palette = create_palette(len(class_names), background)
    cells = [
        overlay(image, mask, palette, opacity=0.45, background=background)
        for image, mask in zip(images, target, strict=True)
    ]
    return _with_names(grid(cells, columns=min(4, len(cells))), class_names, palette)


def label_picture(
    images: Sequence[np.ndarray],
    masks: Mapping[str, Sequence[np.ndarray]],
    class_names: Sequence[str],
    captions: Sequence[Sequence[str]] = (),
    *,
    cell: int = 256,
) -> np.ndarray:
    """Return a picture with one row per photograph: the photograph, then an overlay for each of its label maps.

    Args:
        images: Photographs (H, W, 3), uint8 RGB.
        masks: Title of a column -> the label maps (H, W) of all photographs; ignored pixels are white.
        class_names: Names of the classes, in label order.
        captions: For each row, the text below the photograph and below each overlay.
        cell: Longest side of a cell, in pixels.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    background = background_of(class_names)
    palette = create_palette(len(class_names), background)
    cells = []
    for image, *maps in zip(images, *masks.values(), strict=True):
        cells += [image, *(overlay(image, mask, palette, background=background) for mask in maps)]
    lines = []
    for row in captions:  # Captions of the same number of lines keep the cells of a row aligned.
        most = max(caption.count("\n") for caption in row)
        lines += [caption + "\n" * (most - caption.count("\n")) for caption in row]
    sheet = grid(cells, columns=1 + len(masks), cell=cell, titles=("photograph", *masks), captions=lines)
    return _with_names(sheet, class_names, palette)


def _with_names(sheet: np.ndarray, class_names: Sequence[str], palette: np.ndarray) -> np.ndarray:
    names = legend(class_names, foreground_of(class_names), palette, sheet.shape[1])
    return np.concatenate([sheet, names])
