"""The moving average of the weights, timm's."""

from timm.utils import ModelEmaV3
from torch import nn


def create_ema(model: nn.Module, decay: float) -> ModelEmaV3 | None:
    """A moving average of weights and buffers, or None where `decay` is 0.

    The decay rises from 0 as 1 - (1 + updates)^(-2/3), so that the average of a short run, too, has
    forgotten the weights that it started from. Source: timm, `ModelEmaV3` (after K. Crowson).
    """
    return ModelEmaV3(model, decay=decay, use_warmup=True) if decay else None
