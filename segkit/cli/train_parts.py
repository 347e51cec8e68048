"""The parts of a training, as the settings say: loaders, model, optimizer, schedule and loss."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segkit.cli.train_rare import Rarity
from segkit.cli.train_resume import data_digests, fixed_settings, is_resumed
from segkit.config import Setting, TrainConfig

if TYPE_CHECKING:
    import torch
    from torch import nn

    from segkit.data import SegmentationDataset
    from segkit.data.loaders import Loader
    from segkit.models import Segmenter
    from segkit.training import Ranks, Schedule, TrainState


def build_loaders(
    config: TrainConfig,
    train_set: "SegmentationDataset",
    val_set: "SegmentationDataset",
    rarity: Rarity,
    ranks: "Ranks",
) -> tuple["Loader", "Loader"]:
    """The training and the validation loader of this process."""
    from segkit.data import create_transform, train_loader, val_loader
    from segkit.workflows.devices import pick_workers

    workers = pick_workers(config.workers, ranks.count_here)
    train = train_loader(
        train_set,
        create_transform(config.augment, crop=config.crop, rare_classes=rarity.classes, rare_crops=config.rare_crops),
        batch_size=config.batch_size,
        workers=workers,
        seed=config.seed,
        shares=rarity.shares,
        on_bad=config.on_bad,
        max_bad=config.max_bad,
        decode_at_least=config.decode_at_least,
        rank=ranks.rank,
        ranks=ranks.count,
        **rarity.mixing,
    )
    return train, val_loader(val_set, workers=min(workers, 2), rank=ranks.rank, ranks=ranks.count)


def build_state(
    config: TrainConfig, sets: "Sequence[SegmentationDataset]", batches: int, device: "torch.device", ranks: "Ranks"
) -> "TrainState":
    """Model, optimizer, schedule and what goes with them, for epochs of that many batches.

    Args:
        config: The settings.
        sets: Training and validation images.
        batches: Of an epoch.
        device: Where the model is going to be.
        ranks: The processes that train together.
    """
    from segkit.training import TrainState, create_ema, create_scaler, share_batch_norms
    from segkit.training.optim import check_optimizer

    check_optimizer(config.optimizer)  # before the weights come down
    model = _build_model(config, tuple(sets[0].class_names), device, ranks)
    model = share_batch_norms(model, config.sync_bn, device, ranks)
    optimizer = build_optimizer(config, model)
    steps = math.ceil(batches / config.accumulate)
    return TrainState(
        model,
        optimizer,
        build_schedule(config, optimizer, steps_per_epoch=steps),
        create_scaler(device, config.amp),
        create_ema(model, config.ema),
        settings=fixed_settings(config),
        data=data_digests(config, sets),
        steps_per_epoch=steps,
    )


def _build_model(
    config: TrainConfig, class_names: tuple[str, ...], device: "torch.device", ranks: "Ranks"
) -> "Segmenter":
    import torch

    from segkit.models import create_model, transfer_weights

    pretrained = {"true": True, "false": False}.get(config.pretrained, config.pretrained)
    has_weights = is_resumed(config) or config.init_from is not None
    model = create_model(
        config.model,
        backbone=config.backbone,
        class_names=class_names,
        pretrained=False if has_weights else pretrained,
        output_stride=config.output_stride,
        **config.decoder,
    )
    if config.init_from is not None and not is_resumed(config):
        new = transfer_weights(model, config.init_from)
        if ranks.is_first:
            print(f"weights of {config.init_from}" + (f"; it does not know {', '.join(new)}" if new else ""))
    return model.to(device, memory_format=torch.channels_last)  # a quarter faster, on CPUs and GPUs alike


def architecture_of(path: Path | None) -> dict[str, Setting]:
    """The settings that build the architecture of a model file, if there is one."""
    if path is None:
        return {}
    from segkit.models import find_model_file, read_header

    options = read_header(find_model_file(path))["model"]
    known = {name: options.pop(name) for name in ("backbone", "output_stride")}
    unset = {"in_channels": 3, "img_size": None, "aux_head": False, "image_head": False, "align_corners": False}
    decoder = {name: value for name, value in options.items() if name != "name" and value != unset.get(name, ...)}
    settings = {"model": options["name"], **known, "decoder": decoder}
    return {name: Setting(value, f"model {path}") for name, value in settings.items()}


def build_optimizer(config: TrainConfig, model: "nn.Module") -> "torch.optim.Optimizer":
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


def build_schedule(config: TrainConfig, optimizer: "torch.optim.Optimizer", *, steps_per_epoch: int) -> "Schedule":
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
        milestones=config.milestones,
    )


def build_loss(config: TrainConfig, rarity: Rarity) -> "nn.Module":
    """The loss that is trained with, its classes weighted."""
    from segkit.losses import create_loss

    smoothing = {"label_smoothing": config.label_smoothing} if config.label_smoothing else {}
    weights = {} if rarity.weights is None else {"class_weights": rarity.weights}
    return create_loss(config.loss, **smoothing, **weights)
