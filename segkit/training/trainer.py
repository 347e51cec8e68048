"""The training loop: read `Trainer.epochs`, then `Trainer.train_one_epoch`."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from segkit.compat import compiled_for_training
from segkit.data.batches import TrainBatches
from segkit.errors import CheckpointError, Interrupted, NotFiniteError, UsageError, is_out_of_memory, os_error_text
from segkit.labels import label_names
from segkit.metrics import Scores
from segkit.models import Segmenter
from segkit.models.segmenter import Outputs
from segkit.sliding_window import SlidingWindow
from segkit.training.checkpoint import checkpoint_bytes, prepare_folder, save_if_best, save_on_request, save_progress
from segkit.training.distributed import ALONE, Ranks
from segkit.training.interrupt import StopSignals
from segkit.training.state import TrainState, has_ended, set_random_state
from segkit.training.step import Batch, BufferBackup, at_sam_point, pixel_shares, presence_loss, windows
from segkit.training.validation import AUTO_WINDOW, Precision, Validation, memory_errors_explained, validate

_log = logging.getLogger(__name__)
MAX_OVERFLOWS = 20  # steps in a row that fp16 may skip; the scaler finds a scale that fits within a few steps
MAX_SKIPPED, MAX_SKIPPED_SHARE = 2, 0.01  # steps of an epoch that may be skipped, whichever is more
NAMES_SHOWN = 8  # images that the warning of a skipped step lists


@dataclass(frozen=True)
class TrainOptions:
    """The settings of a training loop.

    Attributes:
        epochs: Number of epochs, including the epochs that a resumed run has finished already.
        accumulate: Number of batches whose gradients make one step.
        clip_grad: Largest norm of the gradient; 0 for no limit.
        sam: Distance from the weights at which the gradient is computed, see `at_sam_point`; 0 for plain steps.
        aux_weight: Weight of the loss on the logits of the model's auxiliary head.
        image_weight: Weight of the loss of the model's image head: binary cross-entropy between its logits and
            whether each class occurs in the crop.
        freeze_backbone: Number of epochs at the start in which the backbone does not learn.
        val_window: Window in which large images are validated, see `validate`. Model files store it.
        val_every: Epochs from one validation to the next; the last epoch always has one.
        early_stopping: Number of epochs without a better mIoU after which to stop; 0 for never.
        save_every: Number of updates after which `last.pt` is written within an epoch; 0 for never.
        compile: Compile the forward pass of training.
        exclude: Classes that are excluded from the means of the scores, see `SegmentationDataset.ignored_labels`.
    """

    epochs: int
    accumulate: int = 1
    clip_grad: float = 0.0
    sam: float = 0.0
    aux_weight: float = 0.0
    image_weight: float = 0.0
    freeze_backbone: int = 0
    val_window: SlidingWindow | None = AUTO_WINDOW
    val_every: int = 1
    early_stopping: int = 0
    save_every: int = 0
    compile: bool = False
    exclude: Sequence[int] = ()


@dataclass(frozen=True)
class EpochReport:
    """The results of one epoch.

    Attributes:
        row: The epoch's row of results.csv.
        scores: The scores of the validation; None if the epoch had none.
        improved: Whether the validation was the best so far.
        images_per_second: Speed of the training, without the validation.
    """

    row: dict[str, float]
    scores: Scores | None
    improved: bool
    images_per_second: float


class Trainer:
    """Train a model, and write its run folder.

    `best.safetensors` (the weights with the best validation mIoU, raw or averaged), `last.pt` (all that is needed to
    resume) and `results.csv` are each written whole or not at all. On a CPU, a run that is interrupted and resumed
    equals a run that is not, bit for bit. With several processes all of them yield the same results, and the first
    one writes.

    A step whose loss or gradient is not finite changes neither weights nor statistics. It is logged with its images.
    More than two such steps in an epoch (more than 1 % of the steps in epochs of 300 and more) raise NotFiniteError.
    In fp16 the scaler expects such steps, and 20 of them in a row are an error. A step waits for the GPU once.

    Args:
        state: Model, optimizer, schedule and progress, the same in all processes; changed in place.
        loss_fn: Logits (N, C, H, W) and target (N, H, W) -> scalar.
        out: The run folder.
        options: The settings of the loop.
        device: The device of the model.
        autocast: Returns the autocast context of a forward pass, see `segkit.training.autocast`.
        ranks: The processes that train together.
        stop: Reports requests to stop or to save; by default there are none.
        progress: Wraps the batches of an epoch, for example in a progress bar.
    """

    def __init__(
        self,
        state: TrainState,
        loss_fn: nn.Module,
        out: Path,
        options: TrainOptions,
        *,
        device: torch.device,
        autocast: Precision,
        ranks: Ranks = ALONE,
        stop: StopSignals | None = None,
        progress: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
    ) -> None:
        self.state = state
        self.loss_fn = loss_fn
        self.out = Path(out)
        self.options = options
        self.device = device
        self.autocast = autocast
        self.ranks = ranks
        self.stop = stop or StopSignals()
        self.progress = progress
        self.val_window = options.val_window  # changed in `validate` if memory runs out
        window = getattr(state.model, "window", None)  # a model of your own may lack it
        if options.val_window is not None and window == replace(options.val_window, above=0):
            self.val_window = window  # memory had run out before the run was resumed
        weights = {"aux_head": options.aux_weight, "image_head": options.image_weight}
        self.heads = tuple(name for name, weight in weights.items() if weight)
        if missing := [name for name in self.heads if getattr(state.model, name, None) is None]:
            raise UsageError(f"`{missing[0].replace('head', 'weight')}` needs a model created with `{missing[0]}`")
        self._model = compiled_for_training(state.model) if options.compile else state.model
        self._buffers = BufferBackup(state.model)

    def epochs(self, train: DataLoader, val: DataLoader) -> Iterator[EpochReport]:
        """Train until the last epoch, or until the mIoU does not rise any more; yield the results of each epoch.

        Each epoch is trained when its results are requested: `for report in trainer.epochs(train, val): ...`.

        Args:
            train: Yields images (N, 3, H, W) and target (N, H, W), both uint8. `batch_sampler.epoch` is set to the
                epoch, and `batch_sampler.start` to its first batch.
            val: Yields validation images and targets.

        Raises:
            NotFiniteError: Several steps of an epoch, or the weights, are not finite; the files keep the last finite
                state.
            Interrupted: `stop` received a request to stop; `last.pt` is written first.
            CheckpointError: The end of the run could not be saved.
        """
        state, options, ranks = self.state, self.options, self.ranks
        ranks.on_first(lambda: prepare_folder(state, self.out))
        if state.random is not None:
            set_random_state(state.random)
            state.random = None
        for loader in (train, val):
            if hasattr(loader, "while_waiting"):  # only a segkit Loader has this attribute
                loader.while_waiting = partial(ranks.check_between, self.stop.check)
        not_saved = None
        state.finished = has_ended(state.epoch, state.stale_epochs, options.epochs, options.early_stopping)
        while not state.finished:
            state.model.freeze_backbone(state.epoch < options.freeze_backbone)
            train.batch_sampler.epoch, train.batch_sampler.start = state.epoch, state.step
            images, seconds = state.image_count, state.seconds
            is_validated = (state.epoch + 1) % options.val_every == 0 or state.epoch + 1 == options.epochs
            with self._saved_if_interrupted():
                train_loss = self.train_one_epoch(train)
                speed = (state.image_count - images) / max(state.seconds - seconds, 1e-9)
                started = time.monotonic()
                validations = self.validate(val) if is_validated else {}
            row = self._row(train_loss, validations, state.seconds + time.monotonic() - started)
            state.end_epoch(row, validated=is_validated)
            improved, not_best = save_if_best(state, validations, self.out, ranks) if is_validated else (False, None)
            state.finished = has_ended(state.epoch, state.stale_epochs, options.epochs, options.early_stopping)
            not_saved = save_progress(state, self.out, ranks) or not_best
            yield EpochReport(row, validations["raw"].scores if is_validated else None, improved, speed)
            try:
                with ranks.stopping_together():
                    self.stop.check()
            except Interrupted as stop:
                if not_saved is not None:
                    stop.error = save_progress(state, self.out, ranks)
                raise
        if not_saved is not None:
            size, problem = f"{checkpoint_bytes(state) / 1e6:.0f} MB", os_error_text(not_saved)
            raise CheckpointError(f"the run is finished, but could not be saved ({size}): {problem}") from not_saved

    def train_one_epoch(self, batches: Iterable[Batch]) -> float:
        """Train on the remaining batches of an epoch.

        Args:
            batches: The batches; in each process its share of every batch.

        Returns:
            The mean loss over the epoch's images, including images before a resume.

        Raises:
            NotFiniteError: Too many steps are not finite.
            Interrupted: `stop` received a request to stop; it is raised between two steps, the same in all processes.
        """
        state, options = self.state, self.options
        state.model.train()
        forward = self.ranks.wrap(self._model, self.heads)
        started = time.monotonic() - state.seconds
        arriving = windows(self.progress(batches), options.accumulate)
        while window := self._next_window(arriving):
            state.scheduler.step_update(state.updates)
            shares, images = pixel_shares([target for _, target in window], self.ranks)
            self._buffers.save()
            state.optimizer.zero_grad()
            loss = self._forward_and_backward(forward, window, shares)
            if options.sam:
                with at_sam_point(state.model, options.sam):
                    state.optimizer.zero_grad()
                    self._forward_and_backward(forward, window, shares)
            loss, norm = self._clip_gradients(loss)
            if math.isfinite(loss):
                state.loss_sum += loss * images
                state.image_count += images
            if math.isfinite(loss) and math.isfinite(norm):
                state.optimizer.step()
                state.overflows = 0
                if state.ema is not None:
                    state.ema.update(state.model, step=state.updates + 1)
            else:
                self._buffers.restore()
                self._report_skipped(loss, window, batches)
            state.scaler.update()
            state.updates += 1
            state.step += len(window)
            state.seconds = time.monotonic() - started
            self._save_or_stop_if_asked()
        return state.loss_sum / state.image_count if state.image_count else math.nan

    def _next_window(self, arriving: Iterator[list[Batch]]) -> list[Batch] | None:
        """Return the next window as soon as every process has its own; None at the end.

        A step begins only then, so that no process waits within a step for a process that was stopped before it.
        """
        with self.ranks.stopping_together(self.stop.check):
            return next(arriving, None)

    def _forward_and_backward(self, forward: nn.Module, window: Sequence[Batch], shares: Sequence[float]) -> Tensor:
        """Run forward, loss and backward on each batch of a window; return this process's part of the loss."""
        state = self.state
        window_loss = torch.zeros((), device=self.device)
        for number, ((images, target), share) in enumerate(zip(window, shares, strict=True), start=1):
            images, target = images.to(self.device, non_blocking=True), target.to(self.device, non_blocking=True)
            with self.ranks.sync_gradients(forward, now=number == len(window)):
                with self.autocast(), _single_value_errors_explained():
                    outputs = forward(state.model.preprocessing(images), **({"extras": True} if self.heads else {}))
                loss, objective = self._losses(outputs, target)
                # Gradients are averaged over the processes, while the shares of all processes add up to 1.
                state.scaler.scale(objective * share * self.ranks.count).backward()
            window_loss += loss.detach() * share
        return window_loss

    def _clip_gradients(self, loss: Tensor) -> tuple[float, float]:
        """Clip the gradient; return the loss over all processes and the norm of the gradient before clipping.

        Both numbers are fetched together, because each fetch waits until the GPU has finished.
        """
        self.state.scaler.unscale_(self.state.optimizer)
        parameters = [parameter for parameter in self.state.model.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        if self.options.clip_grad > 0:
            nn.utils.clip_grads_with_norm_(parameters, self.options.clip_grad, norm)
        loss, norm = torch.stack((loss, norm.float())).tolist()
        return self.ranks.sum_numbers(loss)[0], norm

    def _losses(self, outputs: Tensor | Outputs, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss on the logits, and the objective, which adds the weighted losses of the auxiliary heads."""
        options = self.options
        logits = outputs.logits if self.heads else outputs
        loss = objective = self.loss_fn(logits.float(), target)
        if options.aux_weight:
            objective = objective + options.aux_weight * self.loss_fn(outputs.aux_logits.float(), target)
        if options.image_weight:
            objective = objective + options.image_weight * presence_loss(outputs.image_logits.float(), target)
        return loss, objective

    def _report_skipped(self, loss: float, window: Sequence[Batch], batches: Iterable[Batch]) -> None:
        """Log a step that is not finite, or raise NotFiniteError if there were too many."""
        state = self.state
        problem = "the gradient is not finite" if math.isfinite(loss) else f"the loss is {loss}"
        place = f"epoch {state.epoch + 1}, step {state.step + 1}"
        if state.scaler.is_enabled():
            state.overflows += 1
            if state.overflows >= MAX_OVERFLOWS:
                raise NotFiniteError(
                    f"fp16 has overflowed {MAX_OVERFLOWS} times in a row in {place}; try `amp=bf16`, or a lower `lr`"
                )
            if math.isfinite(loss):
                return  # the scaler finds its scale in this way
        elif state.left_out >= max(MAX_SKIPPED, int(MAX_SKIPPED_SHARE * len(batches) / self.options.accumulate)):
            before = f", as in {state.left_out} steps before it," if state.left_out else ""
            raise NotFiniteError(f"{problem}{before} in {place}; try a lower `lr`, or `amp=off`")
        state.left_out += 1
        if self.ranks.is_first:
            images, sampler = [], getattr(batches, "batch_sampler", None)
            if isinstance(sampler, TrainBatches):
                for number in range(state.step, state.step + len(window)):
                    images += (batches.dataset.data.name(index) for index in sampler.images(number))
            more = f" and {len(images) - NAMES_SHOWN} more" if len(images) > NAMES_SHOWN else ""
            listed = f" (images: {', '.join(images[:NAMES_SHOWN])}{more})" if images else ""
            _log.warning("%s in %s; this step is skipped%s", problem, place, listed)

    def validate(self, val: DataLoader) -> dict[str, Validation]:
        """Validate the weights (`raw`), and their average (`ema`) if there is one.

        All processes use the batch statistics of the first one. If memory runs out, a single process saves the
        training of the epoch, and the validation is tried once more: in windows, if its window is the automatic one.
        The window of the models is the one in which all images were validated.

        Raises:
            MachineError: Memory ran out again.
        """
        models = {"raw": self.state.model} | ({} if self.state.ema is None else {"ema": self.state.ema.module})
        self.state.optimizer.zero_grad()  # makes room for images of full size
        self.ranks.share_buffers(*models.values())
        validations, windows = {}, []
        for name, model in models.items():
            validations[name] = self._validate_with_retry(model, val)
            windows.append(self.val_window)
        if len(set(chain.from_iterable(self.ranks.gather(windows)))) > 1:
            # Memory ran out only for the average, or only in one process: so far only a part was predicted in windows.
            self.val_window = replace(self.val_window, above=0)
            validations = {name: self._validate_with_retry(model, val) for name, model in models.items()}
        for model in models.values():
            model.window = self.val_window
        return validations

    def _validate_with_retry(self, model: Segmenter, val: DataLoader) -> Validation:
        def attempt() -> Validation:
            return validate(
                model,
                val,
                self.loss_fn,
                device=self.device,
                autocast=self.autocast,
                exclude=self.options.exclude,
                window=self.val_window,
                check_stop=self._stop_or_save_in_validation,
                ranks=self.ranks,
            )

        try:
            return attempt()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Not in the handler, where the error keeps the tensors of the failed attempt.
        torch.cuda.empty_cache()
        if self.ranks.count == 1:
            save_progress(self.state, self.out)
        if self.val_window is not None and self.val_window.above:
            self.val_window = replace(self.val_window, above=0)
            side = self.val_window.size[0]
            _log.warning(
                "memory ran out in the validation: images are now predicted in windows of %d pixels; "
                "`val_window=%d` does so from the start",
                side,
                side,
            )
        with memory_errors_explained():
            return attempt()

    def _save_or_stop_if_asked(self) -> None:
        state, options = self.state, self.options
        if self.ranks.sum_numbers(self.stop.save_asked())[0]:
            save_on_request(state, self.out, self.ranks)
        elif options.save_every and state.updates % options.save_every == 0:
            save_progress(state, self.out, self.ranks)
        with self.ranks.stopping_together():
            self.stop.check()

    def _stop_or_save_in_validation(self) -> None:
        self.stop.check()
        if self.ranks.count == 1 and self.stop.save_asked():  # several processes save together, after the next step
            save_on_request(self.state, self.out)

    @contextmanager
    def _saved_if_interrupted(self) -> Iterator[None]:
        try:
            yield
        except Interrupted as stop:
            stop.error = save_progress(self.state, self.out, self.ranks)
            raise

    def _row(self, train_loss: float, validations: dict[str, Validation], seconds: float) -> dict[str, float]:
        """Return the epoch's row of results.csv, with NaN if it was not validated; `ema_...` is of averaged weights."""
        state = self.state
        classes = [f"iou/{name}" for name in label_names(state.model.class_names)]
        row = {"epoch": state.epoch + 1, "train_loss": train_loss}
        row |= dict.fromkeys(("val_loss", "miou", "pixel_accuracy"), math.nan)
        row |= {"lr": max(group["lr"] for group in state.optimizer.param_groups), "time": seconds}
        row |= dict.fromkeys(classes, math.nan)
        if state.ema is not None:
            row |= {f"ema_{key}": math.nan for key in ("val_loss", "miou", *classes)}
        for weights, validation in validations.items():
            prefix = "" if weights == "raw" else f"{weights}_"
            reached = {"val_loss": validation.loss, **validation.scores.to_dict()}
            row |= {prefix + key: value for key, value in reached.items() if prefix + key in row}
        return row


@contextmanager
def _single_value_errors_explained() -> Iterator[None]:
    """Explain torch's error about batch norms that see one value per channel, as behind a global pooling."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UsageError(
            "the model has batch norms behind a global pooling, which cannot learn from a single image: use batches of "
            "two or more images in each process, or another backbone"
        ) from error
