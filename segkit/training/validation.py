"""Loss and scores on a validation set."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segkit.labels import label_names
from segkit.metrics import ConfusionMatrix, Scores
from segkit.models import Segmenter
from segkit.training.distributed import ALONE, Ranks
from segkit.training_scale import FULL_SIZE
from segkit.tta.merge import class_logits

Precision = Callable[[], AbstractContextManager]


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
        check_stop: Called before each batch. If it raises Interrupted in one process, all are interrupted at their
            next batch.
        ranks: The processes that share the images; all of them return the same result.
    """
    model.eval()
    names = label_names(model.class_names)
    confusion = ConfusionMatrix(len(names), class_names=names, exclude=exclude)
    loss_sum, count = 0.0, 0
    with ranks.stopping_together():
        for images, target in loader:
            if check_stop is not None:
                ranks.check_between(check_stop)
            images, target = images.to(device), target.to(device)
            resizing = model.training_scale.of(*target.shape[-2:])
            with autocast():
                is_full_size = resizing == FULL_SIZE
                inputs = images if is_full_size else resizing(images.float())
                logits = model(model.preprocessing.normalise(inputs))
            scores = class_logits(logits)
            if not is_full_size:  # as a Predictor: probabilities are resized, not logits
                scores = resizing.undo(scores.float().softmax(1), target.shape[-2:])
                logits = resizing.undo(logits.float(), target.shape[-2:])
            loss_sum += loss_fn(logits.float(), target).item() * len(images)
            count += len(images)
            confusion.update(scores, target)
            del images, target, logits, scores  # so that they are not in memory together with the next ones
    loss_sum, count = ranks.sum_numbers(loss_sum, count)
    confusion.counts = ranks.sum(confusion.counts)
    return Validation(loss_sum / max(1, count), confusion.compute())
