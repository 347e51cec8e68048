"""Boundary loss: how far the predicted region reaches across the true boundary."""

from torch import Tensor

from segkit.errors import UsageError
from segkit.losses._blocks import masked
from segkit.losses._inputs import Inputs, Loss, Mode, divide


def boundary_loss(
    logits: Tensor,
    target: Tensor,
    distance_maps: Tensor,
    *,
    mode: Mode = "multiclass",
    ignore_index: int | None = 255,
) -> Tensor:
    """Signed distance to the true boundary times the probability, the mean over classes and counted pixels.

    To be added to a loss on regions, with a weight that grows in training; its minimum is below 0.

    Source: Kervadec et al., "Boundary Loss for Highly Unbalanced Segmentation", 2019, equation 5.

    Args:
        logits: (N, C, H, W); C is 1 in mode `binary`.
        target: As in `dice_loss`; it tells which pixels are ignored.
        distance_maps: (N, C, H, W), negative inside the class; see `segkit.data.signed_distance_maps`.
        mode: `multiclass` (softmax), `binary` or `multilabel` (sigmoid).
        ignore_index: The target value of what counts for nothing; None for none.

    Returns:
        A scalar, in pixels; float32 for half-precision logits.
    """
    inputs = Inputs(logits, target, mode, ignore_index)
    if distance_maps.shape != logits.shape:
        raise UsageError(
            f"distance_maps must be (N, C, H, W) like the logits {tuple(logits.shape)}, got "
            f"{tuple(distance_maps.shape)}"
        )
    scores = inputs.dense_logits
    probs = scores.softmax(1) if mode == "multiclass" else scores.sigmoid()
    products = probs * masked(distance_maps.flatten(2), inputs.valid, probs.dtype)
    return divide(inputs.weigh(products.mean(1) if mode == "multiclass" else products).sum(), inputs.num_valid())


class BoundaryLoss(Loss):
    """`boundary_loss` as a module."""

    def __init__(self, *, mode: Mode = "multiclass", ignore_index: int | None = 255) -> None:
        super().__init__(mode, ignore_index)

    def forward(self, logits: Tensor, target: Tensor, distance_maps: Tensor) -> Tensor:
        return boundary_loss(logits, target, distance_maps, mode=self.mode, ignore_index=self.ignore_index)
