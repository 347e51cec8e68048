"""Merge the predictions of views one at a time, so that memory does not grow with the number of views."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


def class_logits(logits: Tensor) -> Tensor:
    """Return logits (N, C, H, W) with one channel per label: a single channel x becomes the two channels 0 and x.

    Their softmax is 1 - sigmoid(x) and sigmoid(x), so code that takes a softmax or an argmax is right for a model with
    one channel, too.
    """
    return torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits


class Merge(NamedTuple):
    """A rule that merges the predictions of views.

    Attributes:
        score: Maps the logits (N, C, h, w) of a view to the scores that are resized to the image.
        view: Maps the resized scores to the values that are combined.
        combine: How values are combined: `sum` (weighted), `max` or `min`.
        finish: Maps the weighted mean, the maximum or the minimum of the values to the result.
        sums_members: Whether the members of an ensemble are added up before `finish`, instead of averaged.
        linear: True if nothing comes between `score` and the sum. Views of the same size can then be summed
            before the resize.
    """

    score: Callable[[Tensor], Tensor]
    view: Callable[[Tensor], Tensor]
    combine: str
    finish: Callable[[Tensor], Tensor]
    sums_members: bool = False

    @property
    def averages(self) -> bool:
        """True if the result is the weighted mean of the results of single members."""
        return self.combine == "sum" and self.finish is _same

    @property
    def linear(self) -> bool:
        return self.combine == "sum" and self.view is _same


class Accumulator:
    """Merge views one after another, in float32.

    Args:
        merge: The rule.
        members: Number of models.
    """

    def __init__(self, merge: Merge, members: int = 1) -> None:
        self.merge = merge
        self.factor = members if merge.sums_members else 1
        self.total: Tensor | None = None
        self.weight = 0.0

    def add(self, scores: Tensor, weight: float) -> None:
        """Add the scores of one view, or the sum of several if the merge is linear.

        Args:
            scores: (N, C, H, W), may be overwritten. Already multiplied by `weight` if the merge is linear.
            weight: Weight of the scores.
        """
        values = self.merge.view(scores)
        self.weight += weight
        if self.merge.combine != "sum":
            extreme = torch.maximum if self.merge.combine == "max" else torch.minimum
            self.total = values if self.total is None else extreme(self.total, values, out=self.total)
        else:
            values = values if self.merge.linear else values.mul_(weight)
            self.total = values if self.total is None else self.total.add_(values)

    def result(self) -> Tensor:
        """Return the merged prediction (N, C, H, W)."""
        total = self.total * (self.factor / self.weight) if self.merge.combine == "sum" else self.total
        return self.merge.finish(total)


def _same(x: Tensor) -> Tensor:
    return x


def _softmax(logits: Tensor) -> Tensor:
    return class_logits(logits).softmax(1)


def _to_sum_1(x: Tensor) -> Tensor:
    # If each class is impossible in some view, all minima are 0; no class is then more likely than another.
    x = x.clamp(min=torch.finfo(x.dtype).tiny)
    return x / x.sum(1, keepdim=True)


def _vote(probs: Tensor) -> Tensor:
    votes = torch.zeros_like(probs).scatter_(1, probs.argmax(1, keepdim=True), 1.0)
    return votes.masked_fill_(probs.isnan().any(1, keepdim=True), torch.nan)  # argmax would take NaN for the largest


def _sharpen(probs: Tensor) -> Tensor:
    return _to_sum_1(probs.square())


MERGES: dict[str, Merge] = {
    "mean": Merge(_softmax, _same, "sum", _same),
    # A log-probability is the logit minus a constant that all classes share. The softmax of the mean logits is
    # therefore the geometric mean of the probabilities, and it cannot underflow.
    "gmean": Merge(class_logits, _same, "sum", _softmax),
    # The same, but the members of an ensemble are added up: more certain than each of them.
    "logits-sum": Merge(class_logits, _same, "sum", _softmax, sums_members=True),
    "logits": Merge(_same, _same, "sum", _same),
    "max": Merge(_softmax, _same, "max", _to_sum_1),
    "min": Merge(_softmax, _same, "min", _to_sum_1),
    "vote": Merge(_softmax, _vote, "sum", _same),
    "sharpened": Merge(_softmax, _sharpen, "sum", _same),
}
