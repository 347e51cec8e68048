"""Boundary loss: the distance by which the predicted region misses the true boundary."""

from torch import Tensor

from segkit.errors import UsageError
from segkit.labels import IGNORE_INDEX
from segkit.losses._base import Loss
from segkit.losses._inputs import Inputs, Mode, divide
from segkit.losses._softmax import masked


def boundary_loss(
    logits: Tensor,
    target: Tensor,
    distance_maps: Tensor,
    *,
    mode: Mode = "multiclass",
    ignore_index: int | None = IGNORE_INDEX,
) -> Tensor:
    """Compute probability times signed distance to the true boundary, the mean over classes and valid pixels.

    Add it to a region loss such as Dice, with a weight that grows during training. Its minimum is below 0.

    Source: Kervadec et al., "Boundary Loss for Highly Unbalanced Segmentation", 2019, equation 5.

    Args:
        logits: (N, C, H, W); C is 1 in mode `binary`.
        target: As in `dice_loss`; only used to find the ignored pixels.
        distance_maps: (N, C, H, W) in pixels, negative inside the class; see `segkit.data.signed_distance_maps`.
        mode: `multiclass` (softmax), `binary` or `multilabel` (sigmoid).
        ignore_index: Target value to ignore; None to ignore nothing.

    Returns:
        A scalar, in pixels; float32 for half-precision logits.

    Raises:
        UsageError: An option, a shape or a type is wrong, or labels are outside the classes.
    """
    inputs = Inputs(logits, target, mode, ignore_index)
    if distance_maps.shape != logits.shape:
        raise UsageError(
            f"`distance_maps` must be (N, C, H, W) like the logits {tuple(logits.shape)}, got "
            f"{tuple(distance_maps.shape)}"
        )
    scores = inputs.dense_logits
    probs = scores.softmax(1) if mode == "multiclass" else scores.sigmoid()
    products = probs * masked(distance_maps.flatten(2), inputs.valid, probs.dtype)
    losses = products.mean(1) if mode == "multiclass" else products
    return divide(inputs.zero_ignored(losses).sum(), inputs.num_valid())


class BoundaryLoss(Loss):
    """`boundary_loss` as a module.

    It is not in `LOSSES`, because it also needs distance maps: call it in your own training loop.
    """

    function = staticmethod(boundary_loss)

    def forward(self, logits: Tensor, target: Tensor, distance_maps: Tensor) -> Tensor:
        return boundary_loss(logits, target, distance_maps, mode=self.mode, ignore_index=self.ignore_index)
