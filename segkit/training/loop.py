"""The training loop, to be read from top to bottom."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from segkit.metrics import ConfusionMatrix, Scores
from segkit.models import Segmenter, save_model
from segkit.training.checkpoint import save_state, write_results
from segkit.training.state import TrainState


@dataclass(frozen=True)
class Evaluation:
    """The loss over a set, as the mean over its images, and the scores."""

    loss: float
    scores: Scores


@dataclass(frozen=True)
class EpochReport:
    """What `fit` tells after each epoch."""

    row: dict[str, float]
    scores: Scores
    improved: bool
    images_per_second: float


Precision = Callable[[], AbstractContextManager]
Progress = Callable[[Iterable], Iterable]


def fit(
    state: TrainState,
    train: DataLoader,
    val: DataLoader,
    loss_fn: nn.Module,
    out: Path,
    *,
    epochs: int,
    device: torch.device,
    autocast: Precision,
    clip_grad: float = 0.0,
    exclude: Sequence[int] = (),
    progress: Progress = iter,
) -> Iterator[EpochReport]:
    """Trains until `epochs` are finished; after each, writes the run folder and gives a report.

    Writes `best.safetensors` (the model with the best validation mIoU), `last.pt` (all that is needed
    to go on) and `results.csv`, each as a whole or not at all.

    Args:
        state: Where to start; changed in place.
        train: Batches of images and target, uint8, whose `batch_sampler.epoch` picks the order.
        val: Validation images.
        loss_fn: logits (N, C, H, W), target (N, H, W) -> scalar.
        out: The run folder.
        epochs: Number of epochs in all, the finished ones included.
        device: Where the model is.
        autocast: Makes the autocast context of a forward pass.
        clip_grad: Largest norm of the gradient; 0 for no limit.
        exclude: Classes that are left out of the means of the scores, see `SegmentationDataset.ignored_labels`.
        progress: Wraps the batches of an epoch, to show how far it is.
    """
    while state.epoch < epochs:
        started = time.monotonic()
        train.batch_sampler.epoch = state.epoch
        train_loss = train_one_epoch(
            state, progress(train), loss_fn, device=device, autocast=autocast, clip_grad=clip_grad
        )
        trained = time.monotonic()
        evaluation = evaluate(state.model, val, loss_fn, device=device, autocast=autocast, exclude=exclude)
        state.epoch += 1
        row = {
            "epoch": state.epoch,
            "train_loss": train_loss,
            "val_loss": evaluation.loss,
            "miou": evaluation.scores.miou,
            "pixel_accuracy": evaluation.scores.pixel_accuracy,
            "lr": state.optimizer.param_groups[0]["lr"],
            "time": time.monotonic() - started,
            **{key: value for key, value in evaluation.scores.to_dict().items() if key.startswith("iou/")},
        }
        state.history.append(row)
        improved = evaluation.scores.miou > state.best_miou
        if improved:
            state.best_miou = evaluation.scores.miou
            save_model(state.model, out / "best.safetensors", epoch=state.epoch, miou=state.best_miou)
        save_state(state, out / "last.pt")
        write_results(state.history, out / "results.csv")
        images = len(train) * train.batch_sampler.batch_size
        yield EpochReport(row, evaluation.scores, improved, images / (trained - started))


def train_one_epoch(
    state: TrainState,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss_fn: nn.Module,
    *,
    device: torch.device,
    autocast: Precision,
    clip_grad: float = 0.0,
) -> float:
    """One pass over the batches; gives the mean loss over the images.

    Raises:
        FloatingPointError: the loss is not a finite number.
    """
    state.model.train()
    total, count = 0.0, 0
    step = state.epoch * len(batches)
    for images, target in batches:
        state.scheduler.step_update(step)
        images, target = images.to(device, non_blocking=True), target.to(device, non_blocking=True)
        with autocast():
            logits = state.model(state.model.preprocessing(images))
        loss = loss_fn(logits.float(), target)
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value} in epoch {state.epoch + 1}; try a lower --lr, or --amp off")
        state.optimizer.zero_grad()
        state.scaler.scale(loss).backward()
        if clip_grad > 0:
            state.scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(state.model.parameters(), clip_grad)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        total += value * len(images)
        count += len(images)
        step += 1
    return total / count


@torch.inference_mode()
def evaluate(
    model: Segmenter,
    loader: DataLoader,
    loss_fn: nn.Module,
    *,
    device: torch.device,
    autocast: Precision,
    exclude: Sequence[int] = (),
) -> Evaluation:
    """Loss and scores over all images of a loader, each at its full size; the classes of `exclude` enter no mean."""
    model.eval()
    confusion = ConfusionMatrix(model.num_classes, class_names=model.class_names, exclude=exclude)
    total, count = 0.0, 0
    for images, target in loader:
        images, target = images.to(device), target.to(device)
        with autocast():
            logits = model(model.preprocessing(images))
        total += loss_fn(logits.float(), target).item() * len(images)
        count += len(images)
        confusion.update(logits, target)
    return Evaluation(total / max(1, count), confusion.compute())
