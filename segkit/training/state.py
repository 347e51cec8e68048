"""TrainState: everything that changes while training."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from segkit.models import Segmenter


@dataclass
class TrainState:
    """Everything that changes while training.

    Attributes:
        epoch: Number of finished epochs.
        best_miou: Best validation mIoU so far.
        history: One row of results for each finished epoch.
    """

    model: Segmenter
    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: torch.amp.GradScaler
    epoch: int = 0
    best_miou: float = -math.inf
    history: list[dict[str, float]] = field(default_factory=list)
