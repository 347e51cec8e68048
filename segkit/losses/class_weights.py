"""class_weights: from how often the classes occur to how much they weigh."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from segkit.errors import UsageError
from segkit.losses._inputs import check_choice


def class_weights(
    counts: Sequence[int] | np.ndarray | Tensor,
    scheme: Literal["inverse", "sqrt", "effective"] = "sqrt",
    *,
    beta: float = 0.9999,
) -> Tensor:
    """Weights that rare classes gain by; their mean over the classes that occur is 1.

    Args:
        counts: (C,) pixels (or images, or objects) of each class.
        scheme: 1 / count (`inverse`), 1 / sqrt(count) (`sqrt`), or 1 / (effective number), which is
            (1 - beta^count) / (1 - beta): Cui et al., "Class-Balanced Loss Based on Effective Number of
            Samples", 2019, section 4.
        beta: In [0, 1); 0 weighs all classes alike. Numbers above 1 / (1 - beta) are alike to it, so
            count images or objects for it, or raise beta.

    Returns:
        (C,) float32; 0 for a class that does not occur.
    """
    check_choice("scheme", scheme, ("inverse", "sqrt", "effective"))
    counts = np.asarray(counts, dtype=np.float64)
    if counts.ndim != 1 or not (counts >= 0).all() or not counts.any():
        raise UsageError(f"counts must be (C,), none negative and one positive, got {counts.tolist()}")
    if not 0 <= beta < 1:
        raise UsageError(f"beta must be in [0, 1), got {beta}")
    occurs = counts > 0
    if scheme == "effective":
        effort = (1 - beta**counts) / (1 - beta)
    else:
        effort = counts if scheme == "inverse" else np.sqrt(counts)
    weights = np.divide(1, effort, out=np.zeros_like(counts), where=occurs)
    return torch.from_numpy(weights / weights[occurs].mean()).float()
