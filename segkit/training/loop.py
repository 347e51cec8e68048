"""The training loop, to be read from top to bottom."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from segkit.errors import CheckpointError, NotFiniteError, UsageError
from segkit.metrics import Scores
from segkit.models import Segmenter
from segkit.training.accumulation import Batch, pixel_shares, windows
from segkit.training.distributed import ALONE, Ranks
from segkit.training.evaluation import Evaluation, Precision, evaluate, go_on
from segkit.training.memory import is_out_of_memory
from segkit.training.not_finite import NotFinite, leave_out, place, stop
from segkit.training.random_state import set_random_state
from segkit.training.sam import perturbed
from segkit.training.saving import (
    checkpoint_bytes,
    prepare_folder,
    save_as_asked,
    save_if_best,
    save_progress,
)
from segkit.training.signals import Interrupted
from segkit.training.state import TrainState

MAX_OVERFLOWS = 20  # in a row; the scaler finds a scale that fits within a few
Progress = Callable[[Iterable], Iterable]


@dataclass(frozen=True)
class EpochReport:
    """What `fit` tells after each epoch; `scores` is None after one without validation."""

    row: dict[str, float]
    scores: Scores | None
    improved: bool
    images_per_second: float


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
    accumulate: int = 1,
    freeze_epochs: int = 0,
    early_stopping: int = 0,
    save_every: int = 0,
    val_every: int = 1,
    compile: bool = False,
    exclude: Sequence[int] = (),
    progress: Progress = iter,
    check_stop: Callable[[], None] = go_on,
    save_asked: Callable[[], bool] = bool,
    sam: float = 0.0,
    ranks: Ranks = ALONE,
) -> Iterator[EpochReport]:
    """Trains until `epochs` are finished; after each, writes the run folder and gives a report.

    Writes `best.safetensors` (the weights with the best validation mIoU, raw or averaged), `last.pt` (all
    that is needed to go on) and `results.csv`, each as a whole or not at all. On a CPU, a run that is
    interrupted and resumed equals one that was not, bit for bit. Several processes give the same reports, and
    the first one writes.

    Args:
        state: Where to start, the same in all processes; changed in place.
        train: Batches of images and target, uint8, whose `batch_sampler.epoch` picks the order and
            `batch_sampler.start` the first batch.
        val: Validation images.
        loss_fn: logits (N, C, H, W), target (N, H, W) -> scalar.
        out: The run folder.
        epochs: Number of epochs in all, the finished ones included.
        device: Where the model is.
        autocast: Makes the autocast context of a forward pass.
        clip_grad: Largest norm of the gradient; 0 for no limit.
        accumulate: Batches whose gradients make one update.
        freeze_epochs: Epochs at the start in which the backbone does not learn.
        early_stopping: Epochs without a better mIoU after which to stop; 0 for never.
        save_every: Updates after which `last.pt` is written within an epoch; 0 for never.
        val_every: Epochs from one validation to the next; the last epoch always has one.
        compile: Compile the forward pass of training.
        exclude: Classes that are left out of the means of the scores, see `SegmentationDataset.ignored_labels`.
        progress: Wraps the batches of an epoch, to show how far it is.
        check_stop: Called between updates and validation images; if it raises Interrupted, in one process or
            in all, `last.pt` is written first.
        sam: See `segkit.training.sam`; 0 for plain steps.
        ranks: The processes that train together.

    Raises:
        FloatingPointError: loss or gradient are not finite in several steps of an epoch, or the weights are no longer;
            the files are the last finite ones.
        Interrupted: by `check_stop`.
        CheckpointError: the end of the run could not be saved.
    """
    ranks.on_first(lambda: prepare_folder(state, out))
    if state.random is not None:
        set_random_state(state.random)
        state.random = None
    common = {"loss_fn": loss_fn, "device": device, "autocast": autocast, "ranks": ranks}
    forward = torch.compile(state.model) if compile else state.model
    on_not_finite = leave_out(train, ranks, accumulate=accumulate)
    updates = {"clip_grad": clip_grad, "accumulate": accumulate, "sam": sam, "on_not_finite": on_not_finite}
    learn = partial(train_one_epoch, **common, **updates)
    check_val = partial(_check_validation, state, out, check_stop, save_asked, ranks)
    score = partial(evaluate, loader=val, **common, exclude=exclude, check_stop=check_val)
    after_update = partial(_after_update, state, out, save_every, check_stop, save_asked, ranks)
    error = None

    def is_finished() -> bool:
        return state.epoch >= epochs or 0 < early_stopping <= state.stale_epochs

    state.finished = is_finished()
    while not state.finished:
        state.model.freeze_backbone(state.epoch < freeze_epochs)
        train.batch_sampler.epoch, train.batch_sampler.start = state.epoch, state.step
        images, seconds = state.image_count, state.seconds
        with _saved_if_interrupted(state, out, ranks):
            train_loss = learn(state, progress(train), forward=ranks.wrap(forward), after_update=after_update())
            speed = (state.image_count - images) / max(state.seconds - seconds, 1e-9)
            started = time.monotonic()
            is_due = (state.epoch + 1) % val_every == 0 or state.epoch + 1 == epochs
            state.optimizer.zero_grad()  # makes room for the full images
            scored = _scores(state, score, out, ranks) if is_due else {}
        row = _row(state, train_loss, scored, state.seconds + time.monotonic() - started)
        state.end_epoch(row, validated=is_due)
        improved, best_error = save_if_best(state, scored, out, ranks) if is_due else (False, None)
        state.finished = is_finished()
        error = save_progress(state, out, ranks) or best_error
        yield EpochReport(row, scored["raw"].scores if is_due else None, improved, speed)
        try:
            with ranks.stopping_together():
                check_stop()
        except Interrupted as stop:
            if error is not None:
                stop.error = save_progress(state, out, ranks)
            raise
    if error is not None:
        size = f"{checkpoint_bytes(state) / 1e6:.0f} MB"
        raise CheckpointError(f"the run is finished, but could not be saved ({size}): {error}") from error


@contextmanager
def _saved_if_interrupted(state: TrainState, out: Path, ranks: Ranks) -> Iterator[None]:
    try:
        yield
    except Interrupted as stop:
        stop.error = save_progress(state, out, ranks)
        raise


def _after_update(
    state: TrainState,
    out: Path,
    save_every: int,
    check_stop: Callable[[], None],
    save_asked: Callable[[], bool],
    ranks: Ranks,
) -> Callable[[], None]:
    """What `fit` does after each update: keeps the time, saves where that is due, and lets itself be stopped."""
    started = time.monotonic() - state.seconds

    def call() -> None:
        state.seconds = time.monotonic() - started
        if any(ranks.gather(save_asked())):
            save_as_asked(state, out, ranks)
        elif save_every and state.updates % save_every == 0:
            save_progress(state, out, ranks)
        with ranks.stopping_together():
            check_stop()

    return call


def _check_validation(
    state: TrainState, out: Path, check_stop: Callable[[], None], save_asked: Callable[[], bool], ranks: Ranks
) -> None:
    """What `fit` does before each validation image."""
    check_stop()
    if ranks.count == 1 and save_asked():  # several processes do not meet here; they save after the next update
        save_as_asked(state, out)


def _scores(
    state: TrainState, score: Callable[[Segmenter], Evaluation], out: Path, ranks: Ranks
) -> dict[str, Evaluation]:
    """What the weights, and their average if there is one, are worth, with the first process's batch statistics.

    Where memory runs out, the epoch's training is saved, by a process that is alone, and each is tried once more.
    """
    models = {"raw": state.model} | ({} if state.ema is None else {"ema": state.ema.module})
    ranks.share_buffers(*models.values())

    def tried_twice(model: Segmenter) -> Evaluation:
        try:
            return score(model)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if ranks.count == 1:
                save_progress(state, out)
        torch.cuda.empty_cache()  # not while the error holds on to what it was doing
        return score(model)

    return {name: tried_twice(model) for name, model in models.items()}


def train_one_epoch(
    state: TrainState,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss_fn: nn.Module,
    *,
    device: torch.device,
    autocast: Precision,
    forward: Callable[[Tensor], Tensor] | None = None,
    clip_grad: float = 0.0,
    accumulate: int = 1,
    after_update: Callable[[], None] = go_on,
    sam: float = 0.0,
    on_not_finite: NotFinite = stop,
    ranks: Ranks = ALONE,
) -> float:
    """One pass over the batches; gives the mean loss over the epoch's images, those before a resume included.

    Args:
        state: Changed in place, step by step.
        batches: What is left of the epoch; in each process its share of every batch.
        loss_fn: logits (N, C, H, W), target (N, H, W) -> scalar.
        device: Where the model is.
        autocast: Makes the autocast context of a forward pass.
        forward: Stands in for the model, such as its compiled form; of several processes, by `Ranks.wrap`.
        clip_grad: Largest norm of the gradient; 0 for no limit.
        accumulate: Batches whose gradients make one update, see `pixel_shares`.
        after_update: Called when `state` is whole; may raise.
        sam: How far from the weights the gradient is taken, see `segkit.training.sam`; 0 for plain steps.
        on_not_finite: Told of a step whose loss or gradient is not finite (in fp16: of the loss alone); if it raises
            nothing, the step changes neither weights nor statistics.
        ranks: The processes that train together.

    Raises:
        FloatingPointError: by `on_not_finite`; or fp16 has overflowed 20 times in a row.
    """
    forward = ranks.wrap(state.model) if forward is None else forward
    state.model.train()
    for window in windows(batches, accumulate):
        state.scheduler.step_update(state.updates)
        shares, images = pixel_shares([target for _, target in window], ranks)
        add_gradients = partial(_add_gradients, state, window, shares, forward, loss_fn, device, autocast, ranks)
        statistics = [buffer.clone() for buffer in state.model.buffers()]
        loss = add_gradients()
        if math.isfinite(loss):
            state.loss_sum += loss * images
            state.image_count += images
            if sam:
                with perturbed(state.model, sam):
                    add_gradients()
        problem = _problem(state, loss, clip_grad)
        if problem:
            for buffer, before in zip(state.model.buffers(), statistics, strict=True):
                buffer.copy_(before)
            on_not_finite(state, problem, len(window))
        if problem and not state.scaler.is_enabled():
            state.updates += 1
        else:
            _update_weights(state)
        state.step += len(window)
        after_update()
    return state.loss_sum / state.image_count if state.image_count else math.nan


def _add_gradients(
    state: TrainState,
    window: Sequence[Batch],
    shares: Sequence[float],
    forward: nn.Module,
    loss_fn: nn.Module,
    device: torch.device,
    autocast: Precision,
    ranks: Ranks,
) -> float:
    """Leaves the gradient of the window's loss, over all processes, in the parameters; gives the loss."""
    state.optimizer.zero_grad()
    total = 0.0
    for i, ((images, target), share) in enumerate(zip(window, shares, strict=True)):
        images, target = images.to(device, non_blocking=True), target.to(device, non_blocking=True)
        with ranks.holding_back(forward, hold=i < len(window) - 1):
            with autocast(), _told_of_single_values():
                logits = forward(state.model.preprocessing(images))
            loss = loss_fn(logits.float(), target) * share
            # Between the processes gradients are averaged, while the shares are to be summed.
            state.scaler.scale(loss * ranks.count).backward()
        total += loss.item()
    return ranks.sum(torch.tensor(total, dtype=torch.float64)).item()


@contextmanager
def _told_of_single_values() -> Iterator[None]:
    """Says what to do where torch takes no statistics: batch norms behind global pooling see one value an image."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UsageError(
            "the model has batch norms behind global pooling, which cannot learn from one image: take batches of two "
            "or more in each process, or another backbone"
        ) from error


def _problem(state: TrainState, loss: float, clip_grad: float) -> str | None:
    """What is not finite, so that the step must be left out; clips the gradient. fp16's scaler sees to gradients."""
    parameters = [parameter for parameter in state.model.parameters() if parameter.grad is not None]
    if state.scaler.is_enabled() and clip_grad > 0:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(parameters, clip_grad)
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if state.scaler.is_enabled():
        return None
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters])
    if not norm.isfinite():
        return "the gradient is not finite"
    if clip_grad > 0:
        nn.utils.clip_grads_with_norm_(parameters, clip_grad, norm)
    return None


def _update_weights(state: TrainState) -> None:
    scale = state.scaler.get_scale()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.updates += 1
    state.overflows = state.overflows + 1 if state.scaler.get_scale() < scale else 0
    if state.overflows >= MAX_OVERFLOWS:
        raise NotFiniteError(
            f"fp16 has overflowed {MAX_OVERFLOWS} times in a row in {place(state)}; try --amp bf16, or a lower --lr"
        )
    if state.ema is not None and not state.overflows:
        state.ema.update(state.model, step=state.updates)


def _row(state: TrainState, train_loss: float, scored: dict[str, Evaluation], seconds: float) -> dict[str, float]:
    """A line of results.csv, NaN where nothing was scored; averaged weights have columns of their own at the end."""
    row = {"epoch": state.epoch + 1, "train_loss": train_loss}
    row |= dict.fromkeys(("val_loss", "miou", "pixel_accuracy"), math.nan)
    row |= {"lr": max(group["lr"] for group in state.optimizer.param_groups), "time": seconds}
    row |= dict.fromkeys(_class_keys(state.model), math.nan)
    if state.ema is not None:
        row |= {f"ema_{key}": math.nan for key in ("val_loss", "miou", *_class_keys(state.model))}
    for weights, evaluation in scored.items():
        prefix, scores = "" if weights == "raw" else f"{weights}_", evaluation.scores.to_dict()
        reached = {"val_loss": evaluation.loss, **scores}
        row |= {prefix + key: value for key, value in reached.items() if prefix + key in row}
    return row


def _class_keys(model: Segmenter) -> list[str]:
    return [f"iou/{name}" for name in model.class_names]
