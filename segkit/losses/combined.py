"""create_loss: losses by name, summed with weights."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from segkit.errors import UsageError
from segkit.losses._inputs import Inputs, Loss
from segkit.losses.cross_entropy import BCELoss, CrossEntropyLoss, OHEMLoss
from segkit.losses.focal import FocalLoss
from segkit.losses.lovasz import LovaszLoss
from segkit.losses.overlap import (
    DiceLoss,
    FocalTverskyLoss,
    GeneralizedDiceLoss,
    JaccardLoss,
    MCCLoss,
    TverskyLoss,
)

LOSSES: dict[str, Callable[..., nn.Module]] = {
    "ce": CrossEntropyLoss,
    "bce": BCELoss,
    "dice": DiceLoss,
    "jaccard": JaccardLoss,
    "tversky": TverskyLoss,
    "focal_tversky": FocalTverskyLoss,
    "generalized_dice": GeneralizedDiceLoss,
    "focal": FocalLoss,
    "lovasz": LovaszLoss,
    "ohem": OHEMLoss,
    "mcc": MCCLoss,
}


class WeightedSum(nn.Module):
    """The weighted sum of losses that take the same logits and target; they share one softmax."""

    def __init__(self, losses: Mapping[str, nn.Module], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.losses = nn.ModuleDict(losses)
        self.weights = dict(weights)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        shared: dict[tuple[object, ...], Inputs] = {}
        total = 0.0
        for name, loss in self.losses.items():
            if isinstance(loss, Loss):
                key = (loss.mode, loss.ignore_index)
                if key not in shared:
                    shared[key] = Inputs(logits, target, *key)
                total = total + self.weights[name] * loss.evaluate(shared[key])
            else:
                total = total + self.weights[name] * loss(logits, target)
        return total


def create_loss(spec: str | Mapping[str, float], *, ignore_index: int | None = 255, **options: Any) -> nn.Module:
    """Builds a loss by name, or a weighted sum of several.

    Args:
        spec: A name (`"ce"`) or names with weights (`{"bce": 0.6, "dice": 0.4}`); see `LOSSES`.
        ignore_index: The label of pixels that count for nothing; None for none.
        **options: Arguments of the losses, each given to those that know it (`label_smoothing=0.1`).

    Returns:
        A module: logits (N, C, H, W), target (N, H, W) -> scalar.

    Raises:
        ValueError: an unknown name, a weight that is not positive, or an option that none of the
            losses knows.
    """
    weights = {spec: 1.0} if isinstance(spec, str) else dict(spec)
    if not weights:
        raise UsageError(f"no loss given, expected some of {', '.join(LOSSES)}")
    for name, weight in weights.items():
        _check_name(name)
        if not weight > 0:
            raise UsageError(f"the weight of loss {name!r} must be positive, got {weight}")
    known = {name: set(inspect.signature(LOSSES[name]).parameters) for name in weights}
    for option in options:
        if not any(option in names for names in known.values()):
            raise UsageError(f"no option {option!r} in the loss {' + '.join(weights)}; {_describe(known)}")
    for name, names in known.items():
        if options.get("mode", "multiclass") != "multiclass" and "mode" not in names:
            raise UsageError(f"loss {name!r} is of mode multiclass alone; for mode {options['mode']!r} take bce")
    losses = {
        name: LOSSES[name](ignore_index=ignore_index, **{k: v for k, v in options.items() if k in known[name]})
        for name in weights
    }
    return losses[spec] if isinstance(spec, str) else WeightedSum(losses, weights)


def _check_name(name: str) -> None:
    if name not in LOSSES:
        near = difflib.get_close_matches(name, LOSSES, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"unknown loss {name!r}{hint} The losses are {', '.join(LOSSES)}")


def _describe(known: Mapping[str, set[str]]) -> str:
    return "; ".join(f"{name} knows {', '.join(sorted(options))}" for name, options in known.items())
