"""The text of a run: what is printed while it trains, and the commands and settings that report.html shows."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from segkit.config import TrainConfig
from segkit.console import percent, table
from segkit.data import SegmentationDataset
from segkit.data.rasterize import OVERLAP_TEXTS
from segkit.models import Segmenter
from segkit.report.run import RunResults
from segkit.runs import RunFolder
from segkit.training import EpochReport, Ranks, TrainState
from segkit.workflows.datasets import sources_of


def finished_text(run: RunFolder, checkpoint: Mapping[str, Any], epochs: int) -> str:
    """Return that a run is finished already, and whether it has all of the `epochs`."""
    done, stale = checkpoint["epoch"], checkpoint["stale_epochs"]
    if done >= epochs:
        return f"{run} is already finished, at {done}/{epochs} epochs"
    return f"{run} was stopped early, after {stale} epochs without a better mIoU"


def plan_text(
    config: TrainConfig,
    run: RunFolder,
    model: Segmenter,
    train_set: SegmentationDataset,
    val_set: SegmentationDataset,
    device: torch.device,
    ranks: Ranks,
) -> str:
    """Return what is going to be trained on what, in a few lines."""
    names = list(model.class_names)
    lines = [
        f"run    {run}",
        f"data   {len(train_set)} training and {len(val_set)} validation images, {len(names)} classes: "
        f"{', '.join(names)}",
    ]
    categories = next((part.categories for part in sources_of(train_set) if hasattr(part, "categories")), {})
    labels = {category: names.index(name) for category, name in categories.items()}
    if any(category != label for category, label in labels.items()):
        listed = (f"{label} {names[label]} (category {category})" for category, label in labels.items())
        lines.append(f"labels {', '.join(['0 background', *listed])}")
    masks = "from the data set"
    if config.data:
        masks = "from their files" if config.masks else f"where objects overlap, {OVERLAP_TEXTS[config.overlap]}"
        if config.ignore_classes:
            masks += f"; neither learnt nor scored: {', '.join(config.ignore_classes)}"
    loss = " + ".join(f"{weight:g} {name}" for name, weight in config.loss.items())
    lines += [
        f"masks  {masks}",
        f"model  {config.model} on {config.backbone}, {count_parameters(model) / 1e6:.1f} M parameters, on {device}",
        f"loss   {loss}, {config.epochs} epochs, batches of {config.batch_size} crops of {config.crop} pixels",
    ]
    if len(train_set) < config.batch_size:
        few = len(train_set)
        lines.append(f"note   there are fewer images than a batch holds: each step takes all {few} of them")
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    if ranks.count > 1:
        share = config.batch_size // ranks.count
        lines.append(f"ranks  {ranks.count} processes, each with {share} of a batch's {config.batch_size} crops")
    elif gpus > 1:
        lines.append(f"ranks  1 of {gpus} GPUs; to use all, start it by torchrun --standalone --nproc-per-node {gpus}")
    return "\n".join(lines)


def count_parameters(model: Segmenter) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def epoch_line(epoch: EpochReport, state: TrainState, epochs: int) -> str:
    """Return the results of an epoch in one line, with its time and an estimate of the remaining time."""
    row = epoch.row
    parts = [f"{state.epoch:4d}/{epochs}", f"loss {row['train_loss']:.4f}"]
    if epoch.scores is not None:
        average = f" ema {row['ema_miou']:.4f}" if "ema_miou" in row else ""
        best = f"(best {state.best_miou:.4f} @{state.best_epoch})"
        parts += [f"val {row['val_loss']:.4f}", f"mIoU {row['miou']:.4f}{average} {best}"]
    parts += [f"lr {row['lr']:.1e}", f"{epoch.images_per_second:.1f} img/s", _clock(row["time"])]
    return "  ".join([*parts, f"eta {_clock((epochs - state.epoch) * row['time'])}"])


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def replaced_text(names: Sequence[str]) -> str:
    """Return which training images were damaged, so that others were shown instead."""
    listed = ", ".join(names[:20]) + (" ..." if len(names) > 20 else "")
    return f"{len(names)} damaged training images were replaced by others ({listed})"


def scores_text(run: RunFolder, results: RunResults, class_names: Sequence[str], ignored: Sequence[str]) -> str:
    """Return the IoU of each class at the best epoch, and where the files are."""
    averaged = " (averaged weights)" if results.best_weights == "ema" else ""
    rows = [
        [name, "-" if name in ignored else percent(iou)]
        for name, iou in zip(class_names, results.best_iou(class_names), strict=True)
    ]
    lines = table(["class", "IoU %"], [*rows, ["mIoU", percent(results.best_miou)]])
    return "\n".join(
        [
            f"\nvalidation images, best epoch {results.best_epoch}{averaged}:",
            *lines,
            f"\n{run}: best.safetensors, last.pt, results.csv, report.html, pictures and tables",
        ]
    )


def next_commands(config: TrainConfig, run: RunFolder) -> dict[str, str]:
    """Return the shell commands that report.html shows, by their purpose."""
    folder = shlex.quote(str(run))
    patience = f" --early-stopping {2 * config.early_stopping}" if config.early_stopping else ""
    data = "--data test.json --images photographs/"
    if config.val and not config.masks and len(config.images) <= 1:
        roots = ["--images", str(config.images[0])] if config.images else []
        data = shlex.join(["--data", *map(str, config.val), *roots])
    return {
        "Segment photographs": f"python infer.py --weights {folder} --source photographs/",
        "Score on labelled images": f"python -m segkit evaluate --weights {folder} {data}",
        "Train for more epochs": f"python train.py --resume {folder} --epochs {2 * config.epochs}{patience}",
    }


def setting_text(value: Any) -> str:
    """Return a setting as one would type it."""
    if isinstance(value, Mapping):
        return " ".join(f"{key}={item}" for key, item in value.items())
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
