"""create_loss: losses by name, and their weighted sum."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

from torch import Tensor, nn

from segkit.errors import UsageError
from segkit.labels import IGNORE_INDEX
from segkit.losses._base import Loss
from segkit.losses._inputs import Inputs
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
from segkit.names import check_known

# What an entry must do is described in `segkit.losses`.
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
    """The weighted sum of losses of the same logits and target.

    Losses of this package with the same `mode` and `ignore_index` share one softmax.

    Args:
        losses: Modules (logits, target) -> scalar, by name.
        weights: The weight of each name.
    """

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
                    shared[key] = Inputs(logits, target, *key, is_shared=len(self.losses) > 1)
                total = total + self.weights[name] * loss.evaluate(shared[key])
            else:
                total = total + self.weights[name] * loss(logits, target)
        return total


def create_loss(
    spec: str | Sequence[str] | Mapping[str, float], *, ignore_index: int | None = IGNORE_INDEX, **options: Any
) -> nn.Module:
    """Build a loss by name, or a weighted sum of several.

    Args:
        spec: A name (`"ce"`), names that weigh 1 each (`["ce", "dice"]`), or names with weights
            (`{"bce": 0.6, "dice": 0.4}`). The names are those of `segkit.losses.LOSSES`, to which you can add your own.
        ignore_index: Target value to ignore; None to ignore nothing.
        **options: Options of the losses. `absent="zero"` goes to all losses that have the option,
            `**{"dice.absent": "zero"}` only to `dice`.

    Returns:
        A module: logits (N, C, H, W), target (N, H, W) -> scalar.

    Raises:
        UsageError: A name is unknown, a weight is not positive, an option has a wrong value, or none of the losses
            has the option.
    """
    if not isinstance(spec, str | Sequence | Mapping):
        raise UsageError(f"a loss must be a name, a list of names, or names with weights, got {spec!r}")
    names = [spec] if isinstance(spec, str) else spec
    weights = dict(spec) if isinstance(spec, Mapping) else dict.fromkeys(names, 1.0)
    if not weights:
        raise UsageError(f"no loss given, expected some of {', '.join(LOSSES)}")
    for name, weight in weights.items():
        check_known("loss", name, LOSSES)
        if not isinstance(weight, Real) or not 0 < weight < math.inf:
            raise UsageError(f"the weight of loss {name!r} must be positive, got {weight!r}")
    known = {name: set(inspect.signature(LOSSES[name]).parameters) for name in weights}
    own = {name: {} for name in weights}
    for option in [option for option in options if "." in option]:
        name, _, of_loss = option.partition(".")
        if name not in weights:
            raise UsageError(f"`{option}` is an option of {name}, but the loss is {' + '.join(weights)}")
        check_known(f"{name} option", of_loss, sorted(known[name]))
        own[name][of_loss] = options.pop(option)
    for option in options:
        others = [name for name in LOSSES if option in inspect.signature(LOSSES[name]).parameters]
        if others and not any(option in names for names in known.values()):
            raise UsageError(
                f"the loss {' + '.join(weights)} does not use `{option}`; losses that do: {', '.join(others)}"
            )
        check_known(f"{' + '.join(weights)} option", option, sorted(set().union(*known.values())))
    for name, names in known.items():
        if options.get("mode", "multiclass") != "multiclass" and "mode" not in names:
            raise UsageError(f"loss {name!r} has only mode multiclass; for mode {options['mode']!r} use 'bce'")
    for name, names in known.items():
        own[name] = {option: value for option, value in options.items() if option in names} | own[name]
    losses = {name: LOSSES[name](**{"ignore_index": ignore_index} | own[name]) for name in weights}
    return losses[spec] if isinstance(spec, str) else WeightedSum(losses, weights)
