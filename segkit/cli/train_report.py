"""What train.py prints and draws."""

import csv
import math
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segkit.config import TrainConfig

if TYPE_CHECKING:
    import torch

    from segkit.cli.run_report import RunReport
    from segkit.data import SegmentationDataset
    from segkit.metrics import Scores
    from segkit.models import Segmenter
    from segkit.training import EpochReport, TrainState
    from segkit.training.validation import Precision


def describe(
    config: TrainConfig,
    model: "Segmenter",
    train_set: "SegmentationDataset",
    val_set: "SegmentationDataset",
    device: object,
    out: Path,
) -> str:
    """What is going to be trained on what, a line each."""
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    loss = " + ".join(f"{weight:g} {name}" for name, weight in config.loss.items())
    return (
        f"run    {out}\n"
        f"data   {len(train_set)} training and {len(val_set)} validation images, {model.num_classes} classes: "
        f"{', '.join(model.class_names)}\n"
        f"{_describe_labels(train_set)}"
        f"masks  {_describe_masks(config)}\n"
        f"model  {config.model} on {config.backbone}, {parameters:.1f} M parameters, on {device}\n"
        f"loss   {loss}, {config.epochs} epochs, batches of {config.batch_size} crops of {config.crop} pixels"
        f"{_describe_small_set(config, len(train_set))}"
    )


def _describe_small_set(config: TrainConfig, images: int) -> str:
    if images >= config.batch_size:
        return ""
    return f"\nnote   --batch-size is {config.batch_size}, but there are {images} images: each step has all of them"


def _describe_labels(data: "SegmentationDataset") -> str:
    """Which category is which label, where their ids do not say so themselves."""
    categories = next((part.categories for part in sources_of(data) if hasattr(part, "categories")), {})
    names = list(data.class_names)
    labels = {category: names.index(name) for category, name in categories.items()}
    if all(category == label for category, label in labels.items()):
        return ""
    listed = (f"{label} {names[label]} (category {category})" for category, label in labels.items())
    return f"labels {', '.join(['0 background', *listed])}\n"


def _describe_masks(config: TrainConfig) -> str:
    from segkit.data.rasterize import OVERLAP_TEXTS

    if not config.data:
        return "as the data set gives them"
    rule = "as their files are" if config.masks else f"where objects overlap, {OVERLAP_TEXTS[config.overlap]}"
    ignored = f"; neither learnt nor scored: {', '.join(config.ignore_classes)}" if config.ignore_classes else ""
    return rule + ignored


def tell_room(state: "TrainState", out: Path) -> None:
    """Warns where the disk has no room for the run's checkpoints: two, and one that is being written."""
    from segkit.training import checkpoint_bytes

    free, needed = shutil.disk_usage(out).free, 3 * checkpoint_bytes(state)
    if free < needed:
        print(f"warning: {out} has room for {free / 1e6:.0f} MB; the run needs about {needed / 1e6:.0f} MB")


def tell_absent(scores: "Scores", ignored: Sequence[str]) -> None:
    """Warns of classes that no validation image shows."""
    names = [name for name, pixels in zip(scores.class_names, scores.support, strict=True) if not pixels]
    names = [name for name in names if name not in ignored]
    if names:
        print(f"warning: no validation image shows {', '.join(names)}: how well that is found stays unknown")


def tell_replaced(names: Sequence[str]) -> None:
    """Names the damaged images that others stood in for."""
    if names:
        shown = ", ".join(names[:20]) + (" ..." if len(names) > 20 else "")
        print(f"damaged training images that others stood in for: {len(names)} ({shown})")


def write_data_report(sets: Mapping[str, "SegmentationDataset"], out: Path) -> None:
    """Writes data_report.csv: all that is wrong or remarkable about the data, if anything is."""
    rows = {
        (name, finding.severity, finding.kind, finding.where, finding.sentence): None
        for name, data in sets.items()
        for part in sources_of(data)
        for finding in getattr(part, "findings", ())
    }
    if rows:
        with (out / "data_report.csv").open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            csv.writer(file).writerows([("set", "severity", "kind", "where", "sentence"), *rows])


def sources_of(data: "SegmentationDataset") -> "list[SegmentationDataset]":
    """The data sets that subsets and joined sets are made of."""
    if hasattr(data, "whole"):
        return sources_of(data.whole)
    return [source for part in getattr(data, "parts", ()) for source in sources_of(part)] or [data]


def progress_bar(batches: Iterable) -> Iterable:
    """The same batches, under a progress bar where somebody can see it."""
    from tqdm import tqdm

    return tqdm(batches, leave=False, unit="batch", dynamic_ncols=True, disable=not sys.stderr.isatty())


def epoch_line(report: "EpochReport", state: "TrainState", epochs: int) -> str:
    """The line that is printed after each epoch."""
    row = report.row
    parts = [f"{state.epoch:4d}/{epochs}", f"loss {row['train_loss']:.4f}"]
    if report.scores is not None:
        average = f" ema {row['ema_miou']:.4f}" if "ema_miou" in row else ""
        best = f"(best {state.best_miou:.4f} @{state.best_epoch})"
        parts += [f"val {row['val_loss']:.4f}", f"mIoU {row['miou']:.4f}{average} {best}"]
    parts += [f"lr {row['lr']:.1e}", f"{report.images_per_second:.1f} img/s", _clock(row["time"])]
    return "  ".join([*parts, f"eta {_clock((epochs - state.epoch) * row['time'])}"])


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def finish(
    state: "TrainState",
    val_set: "SegmentationDataset",
    device: "torch.device",
    autocast: "Precision",
    out: Path,
    report: "RunReport",
) -> None:
    """Scores the best weights once more, for pictures and page; prints their table, and where everything is."""
    from segkit.cli.run_report import CELL, best_iou
    from segkit.cli.train_scores import score_best

    # Twice the size that is shown, so that outlines are smooth.
    report.finish(state, *score_best(val_set, out, device, autocast, 2 * CELL))
    names = state.model.class_names
    averaged = " (averaged weights)" if state.best_weights == "ema" else ""
    print(f"\nIoU on the validation images at the best epoch, {state.best_epoch}{averaged}:")
    width = max(map(len, names))
    for name, value in zip(names, best_iou(state), strict=True):
        missing = math.isnan(value) or name in val_set.ignore_classes
        print(f"  {name:<{width}}  " + ("     -" if missing else f"{100 * value:6.2f} %"))
    print(f"  {'mIoU':<{width}}  {100 * state.best_miou:6.2f} %")
    print(f"\n{out}: best.safetensors, last.pt, results.csv, pictures and tables")
    print(f"look at it: {out / 'report.html'}")
    print(f"use it: python infer.py --weights {out} --source photographs/")
