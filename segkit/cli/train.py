"""train: data and settings in, a run folder out."""

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segkit.cli.errors import reported_errors
from segkit.cli.run_report import RunReport
from segkit.cli.train_data import load_data
from segkit.cli.train_rare import Rarity, measure_rarity
from segkit.cli.train_report import describe, epoch_line, finish, progress_bar, tell_replaced
from segkit.cli.train_resume import complete_settings, data_digest, fixed_settings, is_finished, read_run, resume
from segkit.config import TrainConfig, parse_args, write_yaml

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import DataLoader

    from segkit.data import SegmentationDataset
    from segkit.training import TrainState


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
        "\nThis was the demo. Run `python infer.py`, or train on your own:\n"
        "  python train.py --data train.json --images photographs/ --model fpn --backbone tf_efficientnet_b3\n"
        f"What it has learnt, in curves and pictures: open {out / 'report.html'}"
    )


def train(config: TrainConfig) -> Path:
    """Trains as the settings say; gives the run folder."""
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
    train_set, val_set = load_data(config)
    rarity = measure_rarity(config, train_set)
    state, loaders = _build(config, train_set, val_set, device, rarity)
    loss_fn = _create_loss(config, rarity).to(device)
    out = _open_run(config, state, checkpoint)
    print(describe(config, state.model, train_set, val_set, device, out))
    report = RunReport(config, state, loaders[0], val_set, out, device)
    with report, StopSignals() as stop, _told_when_interrupted(out):
        epochs = fit(
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
        for epoch in epochs:
            print(epoch_line(epoch, state, config.epochs), flush=True)
            report.update(state)
    tell_replaced(loaders[0].dataset.replaced)
    finish(state, val_set, device, autocast(device, config.amp), out, report)
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
