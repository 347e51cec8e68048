"""The optimizer, by timm, and the precision."""

import difflib
from collections.abc import Callable, Iterator
from typing import Any

import timm.optim
import torch
from torch import nn

from segkit.errors import UsageError
from segkit.models import Segmenter


def create_optimizer(
    model: nn.Module,
    name: str = "adamw",
    *,
    lr: float,
    weight_decay: float = 0.0,
    backbone_lr_factor: float = 1.0,
    layer_decay: float | None = None,
    decay_norms: bool = False,
) -> torch.optim.Optimizer:
    """An optimizer of timm by name; norms and biases get no weight decay, unless `decay_norms` says so.

    Args:
        model: Whose parameters it changes.
        name: Any of `timm.optim.list_optimizers()`.
        lr: Learning rate of what no factor lowers.
        weight_decay: Of weights with two dimensions or more.
        backbone_lr_factor: The backbone's learning rate, as a share of `lr`.
        layer_decay: Factor by which the learning rate falls from each group of layers of the backbone to
            the one before it; decoder and head keep the full one. The groups are timm's, of 12 parameters each.
        decay_norms: Let norms and biases decay as well, as torch's own optimizers do.
    """
    check_optimizer(name)
    if layer_decay is None:
        groups = timm.optim.param_groups_weight_decay(model, weight_decay)
    else:
        groups = timm.optim.param_groups_layer_decay(_named_head(model), weight_decay, layer_decay=layer_decay)
    if decay_norms:
        groups = [{**group, "weight_decay": weight_decay} for group in groups]
    if backbone_lr_factor != 1:
        groups = list(_with_backbone_factor(groups, model, backbone_lr_factor))
    try:
        optimizer = timm.optim.create_optimizer_v2(groups, opt=name, lr=lr, weight_decay=weight_decay)
    except (AssertionError, ImportError, RuntimeError) as error:  # those that need CUDA or another package
        raise UsageError(f"optimizer {name!r} cannot be had here: {error}") from error
    if getattr(optimizer, "is_second_order", False):
        raise UsageError(f"optimizer {name!r} needs the gradient of the gradient, which segkit does not take")
    return optimizer


def check_optimizer(name: str) -> None:
    """Raises ValueError where timm has none of that name."""
    known = timm.optim.list_optimizers()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ";"
        raise UsageError(f"unknown optimizer {name!r}{hint} timm has {', '.join(known)}")


def autocast(device: torch.device, amp: str) -> Callable[[], torch.autocast]:
    """A factory of autocast contexts: `auto` is on for CUDA (bf16 where it is fast) and off elsewhere."""
    dtype = amp_dtype(device, amp)
    return lambda: torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def create_scaler(device: torch.device, amp: str) -> torch.amp.GradScaler:
    """Scales losses so that the gradients of fp16 do not vanish; does nothing for the other precisions."""
    return torch.amp.GradScaler(device.type, enabled=amp_dtype(device, amp) == torch.float16)


def amp_dtype(device: torch.device, amp: str) -> torch.dtype | None:
    """The type of mixed precision, None for none."""
    dtypes = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16, "auto": None}
    if amp not in dtypes:
        raise UsageError(f"unknown amp {amp!r}, expected one of {', '.join(dtypes)}")
    if amp == "auto" and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return dtypes[amp]


def _named_head(model: nn.Module) -> nn.Module:
    """The model, which says where its head begins, as timm's layer decay asks of its models."""
    if isinstance(model, Segmenter):
        model.pretrained_cfg = {"classifier": ("decoder", "head", "aux_head", "image_head")}
    return model


def _with_backbone_factor(groups: list[dict[str, Any]], model: nn.Module, factor: float) -> Iterator[dict[str, Any]]:
    """The groups, each divided into what is of the backbone and what is not."""
    backbone = {id(parameter) for parameter in model.backbone.parameters()}
    for group in groups:
        for inside in (True, False):
            parameters = [p for p in group["params"] if (id(p) in backbone) == inside]
            scale = group.get("lr_scale", 1.0) * (factor if inside else 1.0)
            if parameters:
                yield {**group, "params": parameters, "lr_scale": scale}
