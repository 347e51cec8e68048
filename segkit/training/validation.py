"""Loss and scores on a validation set."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from segkit.errors import MachineError, UsageError, is_out_of_memory, sentence
from segkit.labels import IGNORE_INDEX, label_names
from segkit.metrics import ConfusionMatrix, Scores
from segkit.models import Segmenter
from segkit.sliding_window import SlidingWindow
from segkit.training.distributed import ALONE, Ranks
from segkit.training_scale import FULL_SIZE, Resizing, training_scale_of
from segkit.tta.merge import class_logits

Precision = Callable[[], AbstractContextManager]
# For photographs of more than 16 megapixels, which whole would need more memory than many machines have.
AUTO_WINDOW = SlidingWindow(1024, above=2**24)


@dataclass(frozen=True)
class Validation:
    """The mean loss over the images of a set, and the scores."""

    loss: float
    scores: Scores


@torch.inference_mode()
def validate(
    model: Segmenter,
    loader: Iterable[tuple[Tensor, Tensor]],
    loss_fn: nn.Module,
    *,
    device: torch.device,
    autocast: Precision,
    exclude: Sequence[int] = (),
    window: SlidingWindow | None = None,
    check_stop: Callable[[], None] | None = None,
    ranks: Ranks = ALONE,
) -> Validation:
    """Return loss and scores over all images of a loader, with predictions at the size of the image.

    The model gets each image at its training scale, as a `Predictor` does.

    Args:
        model: The model. It is in eval mode afterwards. With one channel, label 1 is predicted where the
            logit is above 0.
        loader: Yields images (N, 3, H, W) and target (N, H, W), both uint8; in each process other images, or none.
        loss_fn: Logits (N, C, H, W) and target (N, H, W) -> scalar.
        device: The device of the model.
        autocast: Returns the autocast context of a forward pass, see `segkit.training.autocast`.
        exclude: Classes that are excluded from the means of the scores.
        window: Images that it cuts are predicted window by window, as a Predictor does. Their loss is the mean over
            bands of rows, weighted by the valid pixels: the same for a loss that is a mean over pixels, close to it
            for others, such as Dice.
        check_stop: Called before each batch. If it raises Interrupted in one process, all are interrupted at their
            next batch.
        ranks: The processes that share the images; all of them return the same result.

    Raises:
        UsageError: The images are not uint8.
    """
    model.eval()
    names = label_names(model.class_names)
    confusion = ConfusionMatrix(len(names), class_names=names, exclude=exclude)
    loss_sum, count = 0.0, 0
    with ranks.stopping_together(check_stop):
        for images, target in loader:
            if check_stop is not None:
                ranks.check_between(check_stop)
            if images.dtype != torch.uint8:
                raise UsageError(
                    f"validation images must be uint8 in 0..255, got {images.dtype}; are they normalised already?"
                )
            images, target = images.to(device), target.to(device)
            size = target.shape[-2:]
            resizing = training_scale_of(model).of(*size)
            factors = resizing.height, resizing.width
            part = None if window is None else window.of(*size, factors=factors, reduce=resizing.reduce)
            count += len(images)
            if part is not None:
                for image, labels in zip(images, target, strict=True):
                    loss_sum += _validate_in_windows(model, image, labels, loss_fn, autocast, part, resizing, confusion)
                continue
            logits, scores = _predict(model, images, resizing, autocast)
            loss_sum += loss_fn(logits.float(), target).item() * len(images)
            confusion.update(scores, target)
            del images, target, logits, scores  # so that they are not in memory together with the next ones
    loss_sum, count = ranks.sum_numbers(loss_sum, count)
    confusion.counts = ranks.sum(confusion.counts)
    return Validation(loss_sum / max(1, count), confusion.compute())


def validation_window(setting: int | Literal["auto"]) -> SlidingWindow | None:
    """Return the window of the setting `val_window`: its side, 0 for none, or `auto` for large images only."""
    if setting == "auto":
        return AUTO_WINDOW
    return SlidingWindow(setting) if setting else None


@contextmanager
def memory_errors_explained() -> Iterator[None]:
    """Say what helps if memory runs out in the validation: a smaller batch or crop does not.

    Raises:
        MachineError: Memory has run out in the block.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MachineError(
            "memory ran out while the validation images were predicted, each at its full size "
            f"({sentence(error).splitlines()[0]:.200}); try `val_window=512`, which predicts them piece by piece"
        ) from error


def _predict(model: Segmenter, images: Tensor, resizing: Resizing, autocast: Precision) -> tuple[Tensor, Tensor]:
    """Return logits and scores of the labels (N, C, H, W) for uint8 images (N, 3, H, W), at their size.

    The scores are logits, or probabilities if the images are resized: as in a Predictor, these are resized.
    """
    prepare = model.preprocessing
    with autocast():
        logits = model(prepare(images) if resizing == FULL_SIZE else prepare.normalise(resizing(images.float())))
    scores = class_logits(logits)
    if resizing == FULL_SIZE:
        return logits, scores
    scores = resizing.undo(scores.float().softmax(1), images.shape[-2:])
    return resizing.undo(logits.float(), images.shape[-2:]), scores


def _validate_in_windows(
    model: Segmenter,
    image: Tensor,
    target: Tensor,
    loss_fn: nn.Module,
    autocast: Precision,
    window: SlidingWindow,
    resizing: Resizing,
    confusion: ConfusionMatrix,
) -> float:
    """Add the labels of an image (3, H, W) to `confusion`, and return its loss; only a band of rows is in memory."""

    def predict(parts: Tensor) -> Tensor:  # logits for the loss, and the probabilities that are blended for the labels
        logits, scores = _predict(model, parts, resizing, autocast)
        probs = scores.float().softmax(1) if resizing == FULL_SIZE else scores
        return torch.cat([logits.float(), probs], dim=1)

    loss_sum, pixels = 0.0, 0
    for top, band in window.bands(predict, image):
        labels = target[None, top : top + band.shape[1]]
        logits, probs = band[None].split([len(band) - len(confusion.class_names), len(confusion.class_names)], dim=1)
        confusion.update(probs, labels)
        valid = int((labels != IGNORE_INDEX).sum())
        if valid:
            loss_sum += loss_fn(logits, labels).item() * valid
            pixels += valid
    return loss_sum / max(1, pixels)
