"""Loss and scores over a validation set."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segkit.metrics import ConfusionMatrix, Scores
from segkit.models import Segmenter
from segkit.training.distributed import ALONE, Ranks

Precision = Callable[[], AbstractContextManager]


@dataclass(frozen=True)
class Evaluation:
    """The loss over a set, as the mean over its images, and the scores."""

    loss: float
    scores: Scores


def go_on() -> None:
    """Does nothing: nobody wants to stop."""


@torch.inference_mode()
def evaluate(
    model: Segmenter,
    loader: Iterable[tuple[Tensor, Tensor]],
    loss_fn: nn.Module,
    *,
    device: torch.device,
    autocast: Precision,
    exclude: Sequence[int] = (),
    check_stop: Callable[[], None] = go_on,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Loss and scores over all images of a loader, each at its full size; of several processes, of all loaders.

    Args:
        model: Is in eval mode afterwards.
        loader: Gives images and target, uint8; in each process others, or none.
        loss_fn: logits (N, C, H, W), target (N, H, W) -> scalar.
        device: Where the model is.
        autocast: Makes the autocast context of a forward pass.
        exclude: Classes that enter no mean.
        check_stop: Called before each batch; if it raises Interrupted, it is so in all processes at their next batch.
        ranks: The processes that share the images; the result is the same in all.
    """
    model.eval()
    confusion = ConfusionMatrix(model.num_classes, class_names=model.class_names, exclude=exclude)
    total, count = 0.0, 0
    with ranks.stopping_together():
        for images, target in loader:
            ranks.check_between(check_stop)
            images, target = images.to(device), target.to(device)
            with autocast():
                logits = model(model.preprocessing(images))
            total += loss_fn(logits.float(), target).item() * len(images)
            count += len(images)
            confusion.update(logits, target)
            del images, target, logits  # or they would be there beside the next ones
    total, count = ranks.sum(torch.tensor([total, count], dtype=torch.float64)).tolist()
    confusion.counts = ranks.sum(confusion.counts)
    return Evaluation(total / max(1, count), confusion.compute())
