"""Optimizer and learning rate schedule, both timm's."""

from collections.abc import Callable
from typing import Any

import timm.optim
import timm.scheduler
import torch
from torch import nn


def create_optimizer(
    model: nn.Module, name: str = "adamw", *, lr: float, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """An optimizer of timm by name; norms and biases get no weight decay."""
    known = timm.optim.list_optimizers()
    if name not in known:
        raise ValueError(f"unknown optimizer {name!r}, timm has {', '.join(known)}")
    return timm.optim.create_optimizer_v2(model, opt=name, lr=lr, weight_decay=weight_decay)


def create_scheduler(
    optimizer: torch.optim.Optimizer, *, epochs: int, steps_per_epoch: int, warmup_epochs: float = 0.0
) -> Any:
    """Linear warm-up from a hundredth, then a cosine to zero; call `step_update(step)` before each step."""
    steps = epochs * steps_per_epoch
    lowest = optimizer.defaults["lr"] / 100
    warmup = min(round(warmup_epochs * steps_per_epoch), steps - 1)
    return timm.scheduler.CosineLRScheduler(
        optimizer,
        t_initial=steps - warmup,
        warmup_t=warmup,
        warmup_prefix=True,
        warmup_lr_init=lowest,
        t_in_epochs=False,
    )


def autocast(device: torch.device, amp: str) -> Callable[[], torch.autocast]:
    """A factory of autocast contexts: `auto` is on for CUDA (bf16 where it is fast) and off elsewhere."""
    dtypes = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16, "auto": None}
    if amp not in dtypes:
        raise ValueError(f"unknown amp {amp!r}, expected one of {', '.join(dtypes)}")
    dtype = dtypes[amp]
    if amp == "auto" and device.type == "cuda":
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return lambda: torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
