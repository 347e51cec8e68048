"""Sharpness-aware minimisation: the gradient is taken where the loss is highest nearby.

Source: Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", 2021, algorithm 1.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def perturbed(model: nn.Module, rho: float) -> Iterator[None]:
    """While it is open, the weights w are at w + rho g / ||g||, for the gradient g that the parameters hold.

    Afterwards weights and buffers, such as the statistics of batch norms, are bit for bit what they were, and
    the gradient is what was left inside. The norm is over all parameters, equation 2 of the paper for p = 2.
    The scale of g, such as that of fp16, does not matter; at a gradient that is zero or not finite the weights
    stay where they are. What is drawn, such as dropout, is drawn anew.

    Differs: where several processes train together, g is the gradient of all of them, as of one large batch;
    in the paper's experiments each accelerator has a perturbation of its own (section 4.1).

    Args:
        model: Holds gradients.
        rho: The distance.
    """
    moved = [parameter for parameter in model.parameters() if parameter.grad is not None]
    kept = [*moved, *model.buffers()]
    before = [value.detach().clone() for value in kept]
    with torch.no_grad():
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in moved])
        if 0 < norm < math.inf:
            for parameter in moved:
                parameter.add_(parameter.grad, alpha=rho / norm.item())
    try:
        yield
    finally:
        with torch.no_grad():
            for value, old in zip(kept, before, strict=True):
                value.copy_(old)
