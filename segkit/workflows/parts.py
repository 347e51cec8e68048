"""The parts of a training, built from its settings: loaders, model, optimizer, schedule and loss."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segkit.config import Setting, TrainConfig
from segkit.console import Console
from segkit.data import SegmentationDataset, create_transform, train_loader, val_loader
from segkit.data.batches import repeat_factors
from segkit.data.loaders import Loader
from segkit.data.samples import CopyPaste, cutmix
from segkit.errors import UsageError
from segkit.folds.counts import ClassCounts, count_labels
from segkit.losses import LOSSES, class_weights, create_loss
from segkit.models import Segmenter, create_model, find_model_file, read_header, transfer_weights
from segkit.models.factory import DECODERS, check_modules, modules_of
from segkit.models.onnx_file import is_onnx
from segkit.names import unknown
from segkit.training import (
    Ranks,
    Schedule,
    TrainOptions,
    TrainState,
    check_optimizer,
    create_ema,
    create_optimizer,
    create_scaler,
    create_scheduler,
    share_batch_norms,
)
from segkit.training.memory import machine_memory
from segkit.training.validation import validation_window
from segkit.training_scale import TrainingScale
from segkit.workflows.datasets import data_digests, photograph_digests
from segkit.workflows.predictors import pick_workers

# Settings that may change when a run is resumed. The data is compared by its content instead.
FREE = {
    *("data", "val", "train_only", "images", "masks", "class_names", "palette", "mask_cache", "allow_outside_root"),
    *("epochs", "early_stopping", "val_window", "save_every", "log", "pretrained", "init_from", "nan_policy"),
    *("imports", "out", "resume", "allow_data_change", "device", "workers", "compile", "recipe", "sync_bn"),
}


@dataclass(frozen=True)
class Rarity:
    """How a training makes up for rare classes.

    Attributes:
        weights: (C,) weights of the classes in the loss; None for no weights.
        shares: How often each image is shown in an epoch; None to show each image once.
        classes: Labels of the rare classes, which crops are drawn around.
        mixing: The options of `train_loader` that mix two samples into one.
    """

    weights: Tensor | None = None
    shares: np.ndarray | None = None
    classes: tuple[int, ...] = ()
    mixing: dict[str, Any] = field(default_factory=dict)


def measure_rarity(config: TrainConfig, data: SegmentationDataset, console: Console) -> Rarity:
    """Count the pixels of each class in the training masks, if a setting depends on it."""
    needs_rare = config.rare_threshold > 0 or config.rare_crops > 0 or config.mix == "copy-paste"
    mixing: dict[str, Any] = {"mix": cutmix} if config.mix == "cutmix" else {}
    if config.class_weights == "none" and not needs_rare:
        return Rarity(mixing=mixing)
    names = data.class_names
    counts = count_labels((data.target(i) for i in range(len(data))), len(names))
    rare = rare_classes(counts)
    weights = None
    if needs_rare:
        console.print(f"rare   {', '.join(names[c] for c in rare) or 'no class'}")
    if config.class_weights != "none":
        # `effective` saturates near 10,000, so it gets numbers of images instead of pixels.
        table = counts.images if config.class_weights == "effective" else counts.pixels
        weights = class_weights(table.sum(0), config.class_weights)
        listed = (f"{name} {weight:.3g}" for name, weight in zip(names, weights.tolist(), strict=True))
        console.print(f"weights {', '.join(listed)}")
    if config.mix == "copy-paste":
        donors = (counts.images[:, list(rare)] > 0).any(1).nonzero()[0]
        mixing = {"mix": CopyPaste(rare), "donors": [int(i) for i in donors]}
    shares = repeat_factors(counts.images > 0, config.rare_threshold) if config.rare_threshold else None
    return Rarity(weights=weights, shares=shares, classes=rare, mixing=mixing)


def rare_classes(counts: ClassCounts) -> tuple[int, ...]:
    """Return the classes with fewer pixels than half the mean over the classes that occur."""
    pixels = counts.pixels.sum(0)
    occurring = pixels[pixels > 0]
    return tuple(c for c, n in enumerate(pixels) if 0 < n < occurring.mean() / 2) if len(occurring) else ()


def check_batch_memory(config: TrainConfig, images: int, ranks: Ranks) -> None:
    """Raise UsageError if the pixels of one batch, as float32, are more than the memory of this machine.

    A training needs many times as much, but how much depends on the model. Only values with which no model can train
    are refused here, such as a crop with a digit too many: the system would kill the process in the first step.

    Args:
        config: The settings.
        images: Number of training images; no batch is larger.
        ranks: The processes. Each has its share of the batch.
    """
    memory = machine_memory()
    here = min(config.batch_size, images) * ranks.count_here // ranks.count
    needed = 4 * 3 * here * config.crop**2
    if memory is not None and needed > memory:
        raise UsageError(
            f"the pixels of one batch need {needed // 10**9:,} GB, and this machine has {memory // 10**9:,} GB of "
            "memory; try a smaller `crop` or `batch_size`"
        )


def build_loaders(
    config: TrainConfig, train_set: SegmentationDataset, val_set: SegmentationDataset, rarity: Rarity, ranks: Ranks
) -> tuple[Loader, Loader]:
    """Return the training and the validation loader of this process."""
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
        num_ranks=ranks.count,
        **rarity.mixing,
    )
    return train, val_loader(val_set, workers=min(workers, 2), rank=ranks.rank, num_ranks=ranks.count)


def build_state(
    config: TrainConfig,
    model: Segmenter,
    sets: Sequence[SegmentationDataset],
    batches: int,
    device: torch.device,
    fold_rule: int,
) -> TrainState:
    """Return the state of a new run: model, optimizer, schedule, scaler and average.

    Args:
        config: The settings.
        model: The model, on `device`.
        sets: The training and the validation images.
        batches: Number of batches in an epoch.
        device: The device of the model.
        fold_rule: How images are divided into folds, see `segkit.folds.Folds`.
    """
    optimizer = build_optimizer(config, model)
    steps = math.ceil(batches / config.accumulate)
    return TrainState(
        model,
        optimizer,
        build_schedule(config, optimizer, steps_per_epoch=steps),
        create_scaler(device, config.amp),
        create_ema(model, config.ema),
        settings=fixed_settings(config),
        data=data_digests(config, sets, fold_rule=fold_rule) | photograph_digests(sets),
        steps_per_epoch=steps,
    )


def build_model(
    config: TrainConfig,
    class_names: Sequence[str],
    device: torch.device,
    ranks: Ranks,
    console: Console,
    *,
    scale: TrainingScale,
    is_resumed: bool,
) -> Segmenter:
    """Return the model on `device`, with pretrained weights or the weights of `init_from`.

    A resumed run takes its weights and its scale from the checkpoint, so it loads neither of them.
    """
    check_optimizer(config.optimizer)  # before pretrained weights are downloaded
    pretrained = {"true": True, "false": False}.get(config.pretrained, config.pretrained)
    model = create_model(
        config.model,
        backbone=config.backbone,
        class_names=tuple(class_names),
        pretrained=False if is_resumed or config.init_from is not None else pretrained,
        output_stride=config.output_stride,
        **config.decoder,
        **({"aux_head": True} if config.aux_weight else {}),
        **({"image_head": True} if config.image_weight else {}),
    )
    model.training_scale = TrainingScale() if config.full_size else scale
    if config.init_from is not None and not is_resumed:
        new = transfer_weights(model, config.init_from)
        source = "a loaded model" if isinstance(config.init_from, Segmenter) else config.init_from
        console.print(f"weights of {source}" + (f"; new classes: {', '.join(new)}" if new else ""))
    # Channels last is a quarter faster, on CPUs and GPUs.
    return share_batch_norms(model.to(device, memory_format=torch.channels_last), config.sync_bn, device, ranks)


def architecture_of(source: Path | Segmenter) -> dict[str, Setting]:
    """Return the settings that build the architecture of a model.

    Args:
        source: A model file, the folder that holds it, or a loaded model.

    Raises:
        MissingFileError: There is no such file.
        UsageError: The file was not written by segkit, `create_model` did not build the model, or it does not take
            photographs.
    """
    if not isinstance(source, Path | Segmenter):
        raise UsageError(f"`init_from` must be a path or a Segmenter, got a {type(source).__name__}")
    name = "the model" if isinstance(source, Segmenter) else source
    if isinstance(source, Segmenter):
        options = source.config
    else:
        file = find_model_file(source)
        if is_onnx(file):
            raise UsageError(f"{file} has no weights to start from, as an ONNX file is only for inference")
        header = read_header(file)
        check_modules(file, header)
        options = header["model"]
    if options is None:
        raise UsageError("`init_from` takes a model that create_model built, since it has to be built again")
    options = dict(options)
    if options.get("in_channels", 3) != 3:
        raise UsageError(f"{name} takes images of {options['in_channels']} channels, but photographs have 3")
    known = {name: options.pop(name) for name in ("backbone", "output_stride")}
    unset = {"in_channels": 3, "img_size": None, "align_corners": False}
    others = ("name", "aux_head", "image_head")  # `aux_weight` and `image_weight` decide whether there are such heads
    decoder = {name: value for name, value in options.items() if name not in others and value != unset.get(name, ...)}
    settings = {"model": options["name"], **known, "decoder": decoder}
    return {name: Setting(value, f"model {name}") for name, value in settings.items()}


def own_modules(config: TrainConfig) -> list[str]:
    """Return the modules other than segkit and timm that have to be imported to train or load the model of a run."""
    losses = [getattr(LOSSES[name], "__module__", "segkit") for name in config.loss]
    own = [module for module in losses if module.partition(".")[0] != "segkit"]
    return list(dict.fromkeys([*config.imports, *modules_of(config.model, config.backbone), *own]))


def build_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer over the parameters of `model`."""
    return create_optimizer(
        model,
        config.optimizer,
        lr=config.lr,
        weight_decay=config.weight_decay,
        backbone_lr_factor=config.backbone_lr_factor,
        layer_decay=config.layer_decay,
        decay_norms=config.decay_norms,
    )


def build_schedule(config: TrainConfig, optimizer: torch.optim.Optimizer, *, steps_per_epoch: int) -> Schedule:
    """Return the schedule of the learning rate."""
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


def check_names(config: TrainConfig) -> None:
    """Raise UsageError if there is no such model or loss, or a setting has no effect on it; before the data is read."""
    for what, names, known in (("model", [config.model], DECODERS), ("loss", config.loss, LOSSES)):
        for name in names:
            if name not in known:
                raise UsageError(
                    f"{unknown(what, name, known)}. If a module of yours adds it, name the module in `imports`"
                )
    build_loss(config, Rarity(weights=None if config.class_weights == "none" else torch.ones(1)))


def build_loss(config: TrainConfig, rarity: Rarity) -> nn.Module:
    """Return the loss, with its options, label smoothing and class weights."""
    smoothing = {"label_smoothing": config.label_smoothing} if config.label_smoothing else {}
    weights = {} if rarity.weights is None else {"class_weights": rarity.weights}
    return create_loss(config.loss, **config.loss_option, **smoothing, **weights)


def build_options(config: TrainConfig, ignored_labels: Sequence[int]) -> TrainOptions:
    """Return the settings of the loop; `ignored_labels` are excluded from the means of the scores."""
    return TrainOptions(
        epochs=config.epochs,
        accumulate=config.accumulate,
        clip_grad=config.clip_grad,
        sam=config.sam,
        aux_weight=config.aux_weight,
        image_weight=config.image_weight,
        freeze_backbone=config.freeze_backbone,
        val_window=validation_window(config.val_window),
        val_every=config.val_every,
        early_stopping=config.early_stopping,
        save_every=config.save_every,
        compile=config.compile,
        exclude=ignored_labels,
    )


def fixed_settings(config: TrainConfig) -> dict[str, str]:
    """Return the settings that a resumed run must share with its start, and `epochs`, which may change."""
    fixed = {}
    for name in [*(setting.name for setting in fields(config) if setting.name not in FREE), "epochs"]:
        value = getattr(config, name)
        # 1 and 1.0 are the same setting, so a whole number becomes a float if the default is one.
        if name == "loss":
            value = {term: float(weight) for term, weight in value.items()}
        elif value is not None and (isinstance(getattr(TrainConfig, name, None), float) or name == "layer_decay"):
            value = float(value)
        fixed[name] = str(value)
    return fixed
