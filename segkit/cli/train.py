"""train: data and settings in, a run folder out."""

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segkit.cli.errors import reported_errors
from segkit.cli.train_all_folds import train_all_folds
from segkit.cli.train_data import load_data
from segkit.cli.train_rare import Rarity, measure_rarity
from segkit.cli.train_report import (
    describe,
    epoch_line,
    finish,
    progress_bar,
    save_batch_picture,
    tell_replaced,
    write_data_report,
)
from segkit.cli.train_resume import (
    data_digest,
    fixed_settings,
    is_finished,
    read_run,
    resume,
    run_folder,
    settings_of_run,
)
from segkit.config import Setting, TrainConfig, parse_args, read_recipe, write_yaml

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.data import DataLoader

    from segkit.data import SegmentationDataset
    from segkit.training import Schedule, TrainState

Load = Callable[[TrainConfig], tuple["SegmentationDataset", "SegmentationDataset"]]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; `argv` is the process's own by default."""
    with reported_errors("train"):
        config = parse_args(TrainConfig, argv, prog="train.py", start_from=_start_from)
        if config.resume:
            config = replace(config, out=run_folder(config))
        if config.fold == "all":
            train_all_folds(config, train)
        elif config.data or config.resume:
            train(config)
        else:
            train_demo(config)


def _start_from(config: TrainConfig) -> Mapping[str, Setting]:
    """The settings of the run that goes on; or, where there is neither data nor a recipe, those of the demo."""
    if config.resume:
        return settings_of_run(config)
    return {} if config.data or config.recipe else read_recipe(TrainConfig, "demo", "no --data")


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


def train(config: TrainConfig, *, load: Load = load_data, whole: Path | None = None) -> Path:
    """Trains as the settings say; gives the run folder.

    Args:
        config: The settings.
        load: Gives the training and validation images.
        whole: The folder by which an interrupted run goes on, where that is not its own.
    """
    from segkit.cli.devices import pick_device
    from segkit.cli.run_folder import check_writable
    from segkit.training import StopSignals, autocast, fit, keep_memory, make_deterministic, seed_all

    checkpoint = read_run(config) if config.resume else None
    if checkpoint and is_finished(config, checkpoint):
        return config.out
    check_writable(config.out)
    seed_all(config.seed)
    device = pick_device(config.device)
    if device.type == "cpu":
        keep_memory()
    if config.deterministic:
        make_deterministic()
    train_set, val_set = load(config)
    rarity = measure_rarity(config, train_set)
    state, loaders = _build(config, train_set, val_set, device, rarity)
    loss_fn = _create_loss(config, rarity).to(device)
    out = _open_run(config, state, checkpoint)
    print(describe(config, state.model, train_set, val_set, device, out))
    write_data_report({"train": train_set, "val": val_set}, out)
    save_batch_picture(loaders[0], train_set.class_names, out)
    with StopSignals() as stop, _told_when_interrupted(whole or out):
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
            val_every=config.val_every,
            compile=config.compile,
            exclude=train_set.ignored_labels,
            progress=progress_bar,
            check_stop=stop.check,
        )
        for report in reports:
            print(epoch_line(report, state, config.epochs), flush=True)
    tell_replaced(loaders[0].dataset.replaced)
    finish(state, val_set, device, out)
    return out


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
    from segkit.training import TrainState, create_ema, create_scaler

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
        max_bad=config.max_bad,
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
    optimizer = _create_optimizer(config, model)
    scheduler = _create_scheduler(config, optimizer, steps_per_epoch=math.ceil(len(train) / config.accumulate))
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


def _create_optimizer(config: TrainConfig, model: "nn.Module") -> "torch.optim.Optimizer":
    from segkit.training import create_optimizer

    return create_optimizer(
        model,
        config.optimizer,
        lr=config.lr,
        weight_decay=config.weight_decay,
        backbone_lr_factor=config.backbone_lr_factor,
        layer_decay=config.layer_decay,
        decay_norms=config.decay_norms,
    )


def _create_scheduler(config: TrainConfig, optimizer: "torch.optim.Optimizer", *, steps_per_epoch: int) -> "Schedule":
    from segkit.training import create_scheduler

    return create_scheduler(
        optimizer,
        config.schedule,
        epochs=config.epochs,
        steps_per_epoch=steps_per_epoch,
        warmup_epochs=config.warmup_epochs,
        warmup_factor=config.warmup_factor,
        min_lr=config.min_lr,
        monitor=config.monitor,
        patience=config.patience,
        plateau_factor=config.plateau_factor,
    )


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
