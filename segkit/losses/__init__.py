"""Losses of logits (N, C, H, W), as functions and as modules; all of them can ignore pixels.

`LOSSES` has the losses that `create_loss` and the setting `loss` of `segkit.train` know by name. To add one, set
`LOSSES["mine"] = MyLoss` before the call. The class

* is a `torch.nn.Module` that takes its options as keyword arguments with defaults, one of them `ignore_index`.
  `create_loss` reads their names from the signature, so `class_weights` only reaches losses that have this option;
* is called with logits (N, C, H, W) and integer labels (N, H, W), and returns a scalar that pixels with the label
  `ignore_index` do not change. If all pixels are ignored, it is 0 with a gradient of 0.

`segkit.testing.check_loss` checks this.
"""

from segkit.losses.boundary import BoundaryLoss, boundary_loss
from segkit.losses.class_weights import class_weights
from segkit.losses.combined import LOSSES, WeightedSum, create_loss
from segkit.losses.cross_entropy import (
    BCELoss,
    CrossEntropyLoss,
    OHEMLoss,
    bce_loss,
    cross_entropy_loss,
    ohem_loss,
)
from segkit.losses.focal import FocalLoss, focal_loss
from segkit.losses.lovasz import LovaszLoss, lovasz_loss
from segkit.losses.overlap import (
    DiceLoss,
    FocalTverskyLoss,
    GeneralizedDiceLoss,
    JaccardLoss,
    MCCLoss,
    TverskyLoss,
    dice_loss,
    generalized_dice_loss,
    jaccard_loss,
    mcc_loss,
    tversky_loss,
)

__all__ = [
    "LOSSES",
    "BCELoss",
    "BoundaryLoss",
    "CrossEntropyLoss",
    "DiceLoss",
    "FocalLoss",
    "FocalTverskyLoss",
    "GeneralizedDiceLoss",
    "JaccardLoss",
    "LovaszLoss",
    "MCCLoss",
    "OHEMLoss",
    "TverskyLoss",
    "WeightedSum",
    "bce_loss",
    "boundary_loss",
    "class_weights",
    "create_loss",
    "cross_entropy_loss",
    "dice_loss",
    "focal_loss",
    "generalized_dice_loss",
    "jaccard_loss",
    "lovasz_loss",
    "mcc_loss",
    "ohem_loss",
    "tversky_loss",
]
