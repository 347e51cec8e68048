"""train: data and settings in, a run folder out."""

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segkit.cli.errors import reported_errors
from segkit.cli.train_rare import Rarity, measure_rarity
from segkit.cli.train_resume import complete_settings, data_digest, fixed_settings, is_finished, read_run, resume
from segkit.config import TrainConfig, parse_args, write_yaml

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import DataLoader

    from segkit.data import CocoSegmentation, FolderSegmentation, SegmentationDataset
    from segkit.models import Segmenter
    from segkit.training import EpochReport, TrainState

PICTURED = 4  # validation photographs in val_predictions.png


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; `argv` is the process's own by default."""
    with reported_errors("train"):
        config = parse_args(TrainConfig, argv, prog="train.py")
        if config.resume:
            train(complete_settings(config, argv))
        elif config.data:
            train(config)
        else:
            train_demo(parse_args(TrainConfig, argv, prog="train.py", recipe="demo"))


def train_demo(config: TrainConfig) -> None:
    """Draws the demo set, trains on it, and says how to go on."""
    from segkit.cli.run_folder import DEMO
    from segkit.data import write_demo

    print(f"DEMO: no --data given, so segkit draws a small data set of its own in {DEMO} and trains on it.")
    train_json, val_json = write_demo(DEMO)
    out = train(replace(config, data=(train_json,), val=(val_json,)))
    print(
        f"\nThis was the demo. Look at {out / 'val_predictions.png'}, run `python infer.py`, or train on your own:\n"
        "  python train.py --data train.json --images photographs/ --model fpn --backbone tf_efficientnet_b3"
    )


def train(config: TrainConfig) -> Path:
    """Trains as the settings say; gives the run folder."""
    from segkit.cli.devices import pick_device
    from segkit.cli.run_folder import check_writable
    from segkit.training import StopSignals, autocast, fit, make_deterministic, seed_all

    checkpoint = read_run(config) if config.resume else None
    if checkpoint and is_finished(config, checkpoint):
        return config.out
    check_writable(config.out)
    seed_all(config.seed)
    device = pick_device(config.device)
    if config.deterministic:
        make_deterministic()
    train_set, val_set = _load_data(config)
    rarity = measure_rarity(config, train_set)
    state, loaders = _build(config, train_set, val_set, device, rarity)
    loss_fn = _create_loss(config, rarity).to(device)
    out = _open_run(config, state, checkpoint)
    print(_describe(config, state.model, train_set, val_set, device, out))
    _save_batch_picture(loaders[0], train_set.class_names, out)
    with StopSignals() as stop, _told_when_interrupted(out):
        reports = fit(
            state,
            *loaders,
            loss_fn,
            out,
            epochs=config.epochs,
            device=device,
            autocast=autocast(device, config.amp),
            clip_grad=config.clip_grad,
            accumulate=config.accumulate,
            freeze_epochs=config.freeze_backbone,
            early_stopping=config.early_stopping,
            save_every=config.save_every,
            compile=config.compile,
            exclude=train_set.ignored_labels,
            progress=_progress_bar,
            check_stop=stop.check,
        )
        for report in reports:
            print(_epoch_line(report, state, config.epochs), flush=True)
    _tell_replaced(loaders[0].dataset.replaced)
    _finish(state, val_set, device, out)
    return out


def _load_data(config: TrainConfig) -> tuple["SegmentationDataset", "SegmentationDataset"]:
    from segkit.cli.sources import share_out
    from segkit.cli.train_folds import add_train_only, count_sources, split_fold

    train_roots, val_roots, extra_roots = _split_roots(config)
    train_masks, val_masks, extra_masks = share_out(config.masks, _sources(config), "--masks")
    train_set = _open(config, "--data", config.data, train_roots, train_masks)
    extra = _open(config, "--train-only", config.train_only, extra_roots, extra_masks) if config.train_only else None
    if config.folds is not None:
        counts = count_sources(train_set, config.data, train_roots)
        return split_fold(train_set, extra, counts, k=config.folds, fold=config.fold, seed=config.seed)
    if config.val:
        val_set = _open(config, "--val", config.val, val_roots, val_masks)
        _check_classes(train_set, val_set, config.data[0], config.val[0])
    else:
        train_set, val_set = train_set.split(config.val_fraction, config.seed)
    return add_train_only(train_set, val_set, extra), val_set


def _open(
    config: TrainConfig, flag: str, paths: Sequence[Path], roots: Sequence[Path] | None, masks: Sequence[Path]
) -> "CocoSegmentation | FolderSegmentation":
    from segkit.cli.sources import open_data
    from segkit.data import DataError

    data = open_data(
        paths,
        roots=roots,
        masks=masks,
        class_names=config.class_names,
        palette=config.palette,
        ignore_classes=config.ignore_classes,
        overlap=config.overlap,
        crowd=config.crowd,
        on_bad="error" if flag == "--val" else config.on_bad,
        mask_cache=_mask_cache(config.mask_cache),
        allow_outside_root=config.allow_outside_root,
    )
    for note in data.notes:
        if note.severity != "warning":  # which Python has shown
            print(f"{flag}: " + "left out: " * (note.severity == "error") + str(note))
    if len(data) == 0:
        raise DataError(f"{flag} has no images")
    if flag != "--train-only" and not any(getattr(data, "annotations", [True])):
        raise DataError(f"{flag} has no annotations, so that there is nothing to learn or to score; is it a test set?")
    return data


def _mask_cache(setting: str) -> Path | str | None:
    from segkit.data.mask_cache import default_folder

    return {"auto": default_folder(), "off": None}.get(setting, setting)


def _check_classes(
    first: "SegmentationDataset", second: "SegmentationDataset", first_file: Path, second_file: Path
) -> None:
    from segkit.data import DataError

    if first.class_names != second.class_names:
        raise DataError(
            f"{first_file} and {second_file} differ in their classes: "
            f"{', '.join(first.class_names)} / {', '.join(second.class_names)}"
        )


def _sources(config: TrainConfig) -> tuple[Sequence[Path], ...]:
    return config.data, config.val, config.train_only


def _split_roots(config: TrainConfig) -> list[Sequence[Path] | None]:
    """The image folders of --data, --val and --train-only."""
    from segkit.cli.sources import share_out

    sources = _sources(config)
    if len(config.images) <= 1:
        return [config.images or None] * 3
    files = sum(map(len, sources))
    if len(config.images) != files:
        raise ValueError(
            f"--images needs one folder, or one for each of the {files} JSON files, got {len(config.images)}"
        )
    return [paths or None for paths in share_out(config.images, sources, "--images")]


def _build(
    config: TrainConfig,
    train_set: "SegmentationDataset",
    val_set: "SegmentationDataset",
    device: object,
    rarity: Rarity,
) -> tuple["TrainState", tuple["DataLoader", "DataLoader"]]:
    import torch

    from segkit.cli.devices import pick_workers
    from segkit.data import create_transform, train_loader, val_loader
    from segkit.models import create_model
    from segkit.training import TrainState, create_ema, create_optimizer, create_scaler, create_scheduler

    workers = pick_workers(config.workers)
    transform = create_transform(
        config.augment, crop=config.crop, rare_classes=rarity.classes, rare_crops=config.rare_crops
    )
    train = train_loader(
        train_set,
        transform,
        batch_size=config.batch_size,
        workers=workers,
        seed=config.seed,
        shares=rarity.shares,
        on_bad=config.on_bad,
        decode_at_least=config.decode_at_least,
        **rarity.mixing,
    )
    model = create_model(
        config.model,
        backbone=config.backbone,
        class_names=train_set.class_names,
        # A resumed run has its weights already.
        pretrained=False if config.resume else {"true": True, "false": False}.get(config.pretrained, config.pretrained),
        output_stride=config.output_stride,
        **config.decoder,
    ).to(device, memory_format=torch.channels_last)  # a quarter faster, on CPUs and GPUs alike
    optimizer = create_optimizer(
        model,
        config.optimizer,
        lr=config.lr,
        weight_decay=config.weight_decay,
        backbone_lr_factor=config.backbone_lr_factor,
        layer_decay=config.layer_decay,
    )
    scheduler = create_scheduler(
        optimizer,
        config.schedule,
        epochs=config.epochs,
        steps_per_epoch=math.ceil(len(train) / config.accumulate),
        warmup_epochs=config.warmup_epochs,
        monitor=config.monitor,
    )
    state = TrainState(
        model,
        optimizer,
        scheduler,
        create_scaler(device, config.amp),
        create_ema(model, config.ema),
        settings=fixed_settings(config),
        data=data_digest(config),
    )
    return state, (train, val_loader(val_set, workers=min(workers, 2)))


def _create_loss(config: TrainConfig, rarity: Rarity) -> "nn.Module":
    from segkit.losses import create_loss

    smoothing = {"label_smoothing": config.label_smoothing} if config.label_smoothing else {}
    weights = {} if rarity.weights is None else {"class_weights": rarity.weights}
    return create_loss(config.loss, **smoothing, **weights)


def _open_run(config: TrainConfig, state: "TrainState", checkpoint: dict[str, Any] | None) -> Path:
    """Makes the run folder, when all the parts are there; or takes up the one to resume."""
    from segkit.cli.run_folder import create_run_folder

    if checkpoint:
        resume(config, state, checkpoint)
        out = config.out
    else:
        out = create_run_folder(config.out, "train")
    write_yaml(replace(config, resume=False), out / "args.yaml")
    return out


@contextmanager
def _told_when_interrupted(out: Path) -> Iterator[None]:
    from segkit.training import Interrupted

    try:
        yield
    except Interrupted as stop:
        print(f"\n{stop}; saved. To go on: python train.py --resume {out}", file=sys.stderr)
        sys.exit(128 + stop.number)


def _describe(
    config: TrainConfig,
    model: "Segmenter",
    train_set: "SegmentationDataset",
    val_set: "SegmentationDataset",
    device: object,
    out: Path,
) -> str:
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    loss = " + ".join(f"{weight:g} {name}" for name, weight in config.loss.items())
    return (
        f"run    {out}\n"
        f"data   {len(train_set)} training and {len(val_set)} validation images, {model.num_classes} classes: "
        f"{', '.join(model.class_names)}\n"
        f"masks  {_describe_masks(config)}\n"
        f"model  {config.model} on {config.backbone}, {parameters:.1f} M parameters, on {device}\n"
        f"loss   {loss}, {config.epochs} epochs, batches of {config.batch_size} crops of {config.crop} pixels"
    )


def _describe_masks(config: TrainConfig) -> str:
    from segkit.data.rasterize import OVERLAP_TEXTS

    rule = "as their files are" if config.masks else f"where objects overlap, {OVERLAP_TEXTS[config.overlap]}"
    ignored = f"; neither learnt nor scored: {', '.join(config.ignore_classes)}" if config.ignore_classes else ""
    return rule + ignored


def _tell_replaced(names: Sequence[str]) -> None:
    if names:
        shown = ", ".join(names[:20]) + (" ..." if len(names) > 20 else "")
        print(f"damaged training images that others stood in for: {len(names)} ({shown})")


def _progress_bar(batches: Iterable) -> Iterable:
    from tqdm import tqdm

    return tqdm(batches, leave=False, unit="batch", dynamic_ncols=True, disable=not sys.stderr.isatty())


def _epoch_line(report: "EpochReport", state: "TrainState", epochs: int) -> str:
    row = report.row
    average = f" ema {row['ema_miou']:.4f}" if "ema_miou" in row else ""
    eta = (epochs - state.epoch) * row["time"]
    return (
        f"{state.epoch:4d}/{epochs}  loss {row['train_loss']:.4f}  val {row['val_loss']:.4f}  "
        f"mIoU {row['miou']:.4f}{average} (best {state.best_miou:.4f} @{state.best_epoch})  lr {row['lr']:.1e}  "
        f"{report.images_per_second:.1f} img/s  {_clock(row['time'])}  eta {_clock(eta)}"
    )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _save_batch_picture(loader: "DataLoader", class_names: Sequence[str], out: Path) -> None:
    from segkit.data import write_image
    from segkit.report import batch_picture

    batch = [loader.dataset[sample] for sample in next(iter(loader.batch_sampler))[:8]]
    images = [image.permute(1, 2, 0).numpy() for image, _ in batch]
    write_image(out / "train_batch.png", batch_picture(images, [target.numpy() for _, target in batch], class_names))


def _finish(state: "TrainState", val_set: "SegmentationDataset", device: object, out: Path) -> None:
    """Pictures, the table of the best epoch, and where everything is."""
    import numpy as np

    from segkit.data import write_image
    from segkit.inference import Predictor
    from segkit.models import load_model
    from segkit.report import prediction_picture, save_class_iou, save_curves

    best, prefix = state.history[state.best_epoch - 1], "ema_" if state.best_weights == "ema" else ""
    names = state.model.class_names
    iou = [best[f"{prefix}iou/{name}"] for name in names]
    save_curves(state.history, out / "curves.png")
    save_class_iou(names, iou, out / "class_iou.png")
    predictor = Predictor(load_model(out), device=device)
    chosen = np.linspace(0, len(val_set) - 1, min(PICTURED, len(val_set))).round().astype(int)
    images, targets = zip(*(val_set[i] for i in chosen), strict=True)
    masks = [predictor(image).mask for image in images]
    write_image(out / "val_predictions.png", prediction_picture(images, targets, masks, names))
    averaged = " (averaged weights)" if prefix else ""
    print(f"\nIoU on the validation images at the best epoch, {best['epoch']}{averaged}:")
    width = max(map(len, names))
    for name, value in zip(names, iou, strict=True):
        missing = math.isnan(value) or name in val_set.ignore_classes
        print(f"  {name:<{width}}  " + ("     -" if missing else f"{100 * value:6.2f} %"))
    print(f"  {'mIoU':<{width}}  {100 * state.best_miou:6.2f} %")
    print(f"\n{out}: best.safetensors, last.pt, results.csv, curves.png, class_iou.png, val_predictions.png")
    print(f"use it: python infer.py --weights {out} --source photographs/")
