"""Loss: the base of the loss modules."""

import inspect
import math
from collections.abc import Callable
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from segkit.errors import UsageError
from segkit.labels import IGNORE_INDEX
from segkit.losses._inputs import Inputs, Mode, check_options
from segkit.names import nearest


class Loss(nn.Module):
    """Base of the loss modules, which call a function with options that were checked when the module was built.

    A subclass names the function: `class DiceLoss(Loss): function = staticmethod(dice_loss)`. The keyword arguments of
    the function, with their defaults, become the keyword arguments of the constructor. The function gets its inputs
    from `Inputs.of`, so that several modules can share them.

    Attributes:
        function: The loss as a function: (logits, target, **options) -> scalar.
        defaults: Options whose default is not the default of the function.
        fixed: Options of the function that the module sets and does not take.
    """

    function: ClassVar[Callable[..., Tensor]]
    defaults: ClassVar[dict[str, Any]] = {}
    fixed: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        own = cls.defaults | cls.fixed
        parameters = [
            parameter.replace(default=own.get(parameter.name, parameter.default))
            for parameter in inspect.signature(cls.function).parameters.values()
            if parameter.kind is parameter.KEYWORD_ONLY
        ]
        cls._defaults = {parameter.name: parameter.default for parameter in parameters}
        accepted = [parameter for parameter in parameters if parameter.name not in cls.fixed]
        cls.__signature__ = inspect.Signature(accepted, return_annotation=None)

    def __init__(self, **options: Any) -> None:
        super().__init__()
        accepted = type(self).__signature__.parameters
        for name in options:
            if name not in accepted:
                near = nearest(name, accepted)
                hint = f", did you mean {near!r}?" if near else f"; its options are {', '.join(accepted)}"
                raise TypeError(f"{type(self).__name__} has no option {name!r}{hint}")
            _check_type(name, options[name], self._defaults[name])
        options = self._defaults | options
        check_options(**options)
        self.mode: Mode = options.pop("mode", "multiclass")
        self.ignore_index: int | None = options.pop("ignore_index", IGNORE_INDEX)
        weights = options.pop("class_weights", None)
        self.options = options
        self.register_buffer("class_weights", None if weights is None else torch.as_tensor(weights).float())

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.evaluate(Inputs(logits, target, self.mode, self.ignore_index))

    def evaluate(self, inputs: Inputs) -> Tensor:
        """Return the loss of checked inputs, which several losses may share."""
        weights = {} if self.class_weights is None else {"class_weights": self.class_weights}
        return type(self).function(inputs, inputs.target, **self.options, **weights)

    def extra_repr(self) -> str:
        shown = {"mode": self.mode, "ignore_index": self.ignore_index} | self.options
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())


def _check_type(name: str, value: object, default: object) -> None:
    """Raise UsageError if an option whose default is a number or a bool is something else."""
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise UsageError(f"`{name}` must be True or False, got {value!r}")
    elif name == "ignore_index" and value is None:
        return  # No label is ignored.
    elif isinstance(default, Real) and not (isinstance(value, Real) and math.isfinite(value)):
        raise UsageError(f"`{name}` must be a number, got {value!r}")
