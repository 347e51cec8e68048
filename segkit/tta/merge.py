"""Merges of views, each as a running accumulator: memory does not grow with the number of views."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Merge(NamedTuple):
    """How the views of an image become one map.

    Attributes:
        score: Logits (N, C, h, w) of a view -> what is resized to the image.
        view: What is taken of it there.
        combine: `sum` (weighted), `max` or `min`.
        finish: The weighted mean, or the extreme, of all views -> the result.
        linear: Nothing between `score` and the sum, so that views of one size are summed before the resize.
    """

    score: Callable[[Tensor], Tensor]
    view: Callable[[Tensor], Tensor]
    combine: str
    finish: Callable[[Tensor], Tensor]

    @property
    def linear(self) -> bool:
        return self.combine == "sum" and self.view is _same


class Accumulator:
    """Takes the views one after another; float32."""

    def __init__(self, merge: Merge) -> None:
        self.merge = merge
        self.total: Tensor | None = None
        self.weight = 0.0

    def add(self, scores: Tensor, weight: float) -> None:
        """Adds scores (N, C, H, W), which may be overwritten; already weighted where the merge is linear."""
        values = self.merge.view(scores)
        self.weight += weight
        if self.merge.combine != "sum":
            extreme = torch.maximum if self.merge.combine == "max" else torch.minimum
            self.total = values if self.total is None else extreme(self.total, values, out=self.total)
        else:
            values = values if self.merge.linear else values.mul_(weight)
            self.total = values if self.total is None else self.total.add_(values)

    def result(self) -> Tensor:
        """The merged map (N, C, H, W)."""
        total = self.total / self.weight if self.merge.combine == "sum" else self.total
        return self.merge.finish(total)


def _same(x: Tensor) -> Tensor:
    return x


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(1)


def _to_sum_1(x: Tensor) -> Tensor:
    return x / x.sum(1, keepdim=True)


def _vote(probs: Tensor) -> Tensor:
    return torch.zeros_like(probs).scatter_(1, probs.argmax(1, keepdim=True), 1.0)


def _sharpen(probs: Tensor) -> Tensor:
    return _to_sum_1(probs.square())


MERGES: dict[str, Merge] = {
    "mean": Merge(_softmax, _same, "sum", _same),
    # The logarithm of a probability is the logit less something that all classes share: the softmax of the mean
    # logits is the geometric mean, without underflow.
    "gmean": Merge(_same, _same, "sum", _softmax),
    "logits": Merge(_same, _same, "sum", _same),
    "max": Merge(_softmax, _same, "max", _to_sum_1),
    "min": Merge(_softmax, _same, "min", _to_sum_1),
    "vote": Merge(_softmax, _vote, "sum", _same),
    "sharpened": Merge(_softmax, _sharpen, "sum", _same),
}
