"""Parts of one training step: batches that share a step, the loss of an image head, SAM, and undoing a step."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkit.compat import copy_all, version
from segkit.labels import IGNORE_INDEX
from segkit.training.distributed import ALONE, Ranks

Batch = tuple[Tensor, Tensor]


def windows(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Yield groups of `size` batches that share one update; the last group may be smaller."""
    window = []
    for batch in batches:
        window.append(batch)
        if len(window) == size:
            yield window
            window = []
    if window:
        yield window


def pixel_shares(
    targets: Sequence[Tensor], ranks: Ranks = ALONE, ignore_index: int = IGNORE_INDEX
) -> tuple[list[float], int]:
    """Return the weight of each batch's mean loss in its window: its share of the window's valid pixels.

    The mean over all pixels of a window is not the mean of the batches' means if the batches ignore different numbers
    of pixels; with these weights it is. For losses that are not a mean over valid pixels (Dice, or a cross entropy with
    class weights) the weighted sum is an approximation.

    Args:
        targets: (N, H, W) each, on the CPU.
        ranks: The processes whose batches make up the window.
        ignore_index: The label of pixels that are ignored.

    Returns:
        The weights, which add up to 1 over all processes, and the number of images in the window. With several
        processes, images without a valid pixel are not counted: `TrainBatches` pads its batches with such images.
    """
    if ranks.count == 1 and len(targets) == 1:
        return [1.0], len(targets[0])
    valid = [(target != ignore_index).flatten(1).sum(1).tolist() for target in targets]  # pixels of each image
    images = sum(len(batch) if ranks.count == 1 else sum(map(bool, batch)) for batch in valid)
    total, images = ranks.sum_numbers(sum(map(sum, valid)), images)
    return [sum(batch) / max(total, 1) for batch in valid], int(images)


def presence_loss(logits: Tensor, target: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Return the binary cross-entropy between image logits and whether each class occurs among the valid pixels.

    The mean is over the classes, and over the images that have a valid pixel; without such an image the loss is 0.

    Args:
        logits: (N, C), or (N, 1) of a model with one channel.
        target: (N, H, W) labels.
        ignore_index: The label of pixels that are ignored.
    """
    count = max(logits.shape[1], ignore_index + 1)
    occurs = torch.zeros(len(logits), count, dtype=logits.dtype, device=logits.device)
    occurs.scatter_(1, target.flatten(1).long(), 1.0)
    occurs = occurs[:, : max(logits.shape[1], 2)]
    has_label = occurs.any(1)
    if logits.shape[1] == 1:  # the class of a model with one channel is label 1
        occurs = occurs[:, 1:]
    losses = F.binary_cross_entropy_with_logits(logits, occurs, reduction="none").mean(1)
    return (losses * has_label).sum() / has_label.sum().clamp(min=1)


class BufferBackup:
    """A copy of a model's buffers, such as the statistics of its batch norms, to undo a step that is not finite.

    `save` copies only the buffers that may have changed since the last copy: the running statistics of norms in
    training mode, and buffers whose version has risen, see `segkit.compat.version`.

    Args:
        model: The model. Its buffers are read when `save` is called.
    """

    def __init__(self, model: nn.Module) -> None:
        self._owners = [
            (module, name, hasattr(module, "running_mean"))
            for module in model.modules()
            for name, _ in module.named_buffers(recurse=False)
        ]
        self._saved: list[tuple[Tensor, Tensor, int] | None] = [None] * len(self._owners)  # buffer, copy, version

    def save(self) -> None:
        """Copy the buffers as they are now."""
        sources, copies = [], []
        for i, (module, name, is_norm) in enumerate(self._owners):
            buffer, saved = getattr(module, name), self._saved[i]
            if saved is None or saved[0] is not buffer:
                self._saved[i] = buffer, buffer.detach().clone(), version(buffer)
            elif version(buffer) != saved[2] or (is_norm and module.training):
                self._saved[i] = buffer, saved[1], version(buffer)
                sources.append(buffer)
                copies.append(saved[1])
        copy_all(copies, sources)

    def restore(self) -> None:
        """Put every buffer back to what it was at the last `save`."""
        for (module, name, _), saved in zip(self._owners, self._saved, strict=True):
            if getattr(module, name) is not saved[0]:
                setattr(module, name, saved[0])
        copy_all([saved[0] for saved in self._saved], [saved[1] for saved in self._saved])


@contextmanager
def at_sam_point(model: nn.Module, rho: float) -> Iterator[None]:
    """Move the weights w to w + rho g / ||g|| inside the context, for the gradient g that the parameters hold.

    On exit, weights and buffers (such as the statistics of batch norms) are bit for bit what they were, and the
    gradient is the one computed inside. The norm is over all parameters, equation 2 of the paper for p = 2. The scale
    of g, such as the one that fp16 needs, does not matter. If g is zero or not finite, the weights do not move. Random
    numbers, such as the ones of dropout, are drawn again inside. Nothing here waits for the GPU.

    Source: Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", 2021, algorithm 1.

    Differs: if several processes train together, g is the gradient of all of them, as of one large batch; in the paper
    each accelerator moves its weights by its own gradient (section 4.1).

    Args:
        model: Its parameters hold gradients.
        rho: The distance.
    """
    moved = [parameter for parameter in model.parameters() if parameter.grad is not None]
    kept = [*moved, *model.buffers()]
    before = [value.detach().clone() for value in kept]
    with torch.no_grad():
        norm = nn.utils.get_total_norm([parameter.grad for parameter in moved])
        factor = torch.where((norm > 0) & norm.isfinite(), rho / norm, 0)
        for parameter in moved:
            parameter.add_((parameter.grad * factor).nan_to_num(nan=0, posinf=0, neginf=0))
    try:
        yield
    finally:
        copy_all(kept, before)
