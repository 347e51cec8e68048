"""The optimizer and the average of the weights, both by timm; and mixed precision."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import timm.optim
import torch
from timm.utils import ModelEmaV3
from torch import nn

from segkit.errors import UsageError
from segkit.models import Segmenter
from segkit.names import check_known

HEAD = ("decoder", "head", "aux_head", "image_head")  # parts of a Segmenter that learn at the full rate


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
    """Create an optimizer of timm by name. Norms and biases get no weight decay, unless `decay_norms` is set.

    Args:
        model: The model whose parameters are optimized.
        name: Any of `timm.optim.list_optimizers()`.
        lr: Learning rate of the parameters to which no factor applies.
        weight_decay: Weight decay of parameters with two or more dimensions.
        backbone_lr_factor: The backbone's learning rate as a share of `lr`.
        layer_decay: Factor of the learning rate from each group of the backbone's layers to the group before it;
            decoder and heads keep the full rate. The groups are timm's, of 12 parameters each.
        decay_norms: Apply weight decay to norms and biases too, as torch's optimizers do by default.

    Raises:
        UsageError: Timm has no such optimizer, or it cannot be used here.
    """
    check_optimizer(name)
    if layer_decay is None:
        groups = timm.optim.param_groups_weight_decay(model, weight_decay)
    else:
        layers = model
        if isinstance(model, Segmenter):  # timm asks a model for its parameters and for the names of its head
            layers = SimpleNamespace(named_parameters=model.named_parameters, pretrained_cfg={"classifier": HEAD})
        groups = timm.optim.param_groups_layer_decay(layers, weight_decay, layer_decay=layer_decay)
    if decay_norms:
        groups = [{**group, "weight_decay": weight_decay} for group in groups]
    if backbone_lr_factor != 1:
        groups = list(_with_backbone_factor(groups, model, backbone_lr_factor))
    try:
        optimizer = timm.optim.create_optimizer_v2(groups, opt=name, lr=lr, weight_decay=weight_decay)
    except (AssertionError, ImportError, RuntimeError) as error:  # some optimizers need CUDA or another package
        raise UsageError(f"optimizer {name!r} is not available here: {error}") from error
    if getattr(optimizer, "is_second_order", False):
        raise UsageError(f"optimizer {name!r} needs second derivatives, which segkit does not compute")
    return optimizer


def check_optimizer(name: str) -> None:
    """Raise UsageError if timm has no optimizer of that name."""
    check_known("optimizer", name, timm.optim.list_optimizers())


def create_ema(model: nn.Module, decay: float) -> ModelEmaV3 | None:
    """Create a moving average of a model's weights and buffers, or return None if `decay` is 0.

    The decay rises from 0 as 1 - (1 + updates)^(-2/3), so that even in a short run the average forgets the initial
    weights. Source: timm, `ModelEmaV3` (after K. Crowson).

    Args:
        model: The model that is averaged.
        decay: Highest decay, in 0..1.
    """
    return ModelEmaV3(model, decay=decay, use_warmup=True) if decay else None


def autocast(device: torch.device, amp: str) -> Callable[[], torch.autocast]:
    """Return a function that creates autocast contexts.

    Args:
        device: The device of the model.
        amp: `off`, `bf16`, `fp16`, or `auto`: on CUDA bf16 if the GPU has it and else fp16, off on other devices.
    """
    dtype = amp_dtype(device, amp)
    return lambda: torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def create_scaler(device: torch.device, amp: str) -> torch.amp.GradScaler:
    """Create the scaler that keeps small gradients of fp16 from becoming 0; for other precisions it is disabled."""
    return torch.amp.GradScaler(device.type, enabled=amp_dtype(device, amp) == torch.float16)


def amp_dtype(device: torch.device, amp: str) -> torch.dtype | None:
    """Return the dtype of mixed precision, None if it is off; see `autocast`."""
    dtypes = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16, "auto": None}
    check_known("`amp`", amp, dtypes)
    if amp == "auto" and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return dtypes[amp]


def _with_backbone_factor(groups: list[dict[str, Any]], model: nn.Module, factor: float) -> Iterator[dict[str, Any]]:
    """Divide each group into the parameters of the backbone, with their factor, and the others."""
    backbone = {id(parameter) for parameter in model.backbone.parameters()}
    for group in groups:
        for inside in (True, False):
            parameters = [p for p in group["params"] if (id(p) in backbone) == inside]
            scale = group.get("lr_scale", 1.0) * (factor if inside else 1.0)
            if parameters:
                yield {**group, "params": parameters, "lr_scale": scale}
