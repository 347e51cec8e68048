"""class_weights: weights of the classes from their frequencies."""

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
    """Return weights that are larger for rarer classes; their mean over the classes that occur is 1.

    Args:
        counts: (C,) number of pixels (or of images, or objects) of each class.
        scheme: `inverse`: 1 / count; `sqrt`: 1 / sqrt(count); `effective`: 1 / (effective number), with the effective
            number (1 - beta^count) / (1 - beta) of Cui et al., "Class-Balanced Loss Based on Effective Number of
            Samples", 2019, section 4.
        beta: For `effective`, in [0, 1); 0 makes all weights equal. Counts above 1 / (1 - beta) all have nearly the
            same effective number, so count images or objects, not pixels, or choose a larger beta.

    Returns:
        (C,) float32; 0 for a class that does not occur.

    Raises:
        UsageError: A count is negative, all are 0, or an argument has a wrong value.
    """
    check_choice("scheme", scheme, ("inverse", "sqrt", "effective"))
    counts = np.asarray(counts, dtype=np.float64)
    if counts.ndim != 1 or not (counts >= 0).all() or not counts.any():
        raise UsageError(f"`counts` must be (C,), none negative and at least one positive, got {counts.tolist()}")
    if not 0 <= beta < 1:
        raise UsageError(f"`beta` must be in [0, 1), got {beta}")
    occurs = counts > 0
    if scheme == "effective":
        numbers = (1 - beta**counts) / (1 - beta)
    else:
        numbers = counts if scheme == "inverse" else np.sqrt(counts)
    weights = np.divide(1, numbers, out=np.zeros_like(counts), where=occurs)
    return torch.from_numpy(weights / weights[occurs].mean()).float()
