"""Losses of logits (N, C, H, W), as functions and as modules; all of them can ignore pixels."""

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
