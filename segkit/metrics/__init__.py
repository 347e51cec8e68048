"""Metrics for predicted labels (N, H, W), and for logits or probabilities (N, C, H, W)."""

from segkit.metrics.bootstrap import Interval, bootstrap_difference, bootstrap_interval
from segkit.metrics.boundary import BoundaryIoU, BoundaryScores
from segkit.metrics.calibration import CalibrationError, CalibrationScores
from segkit.metrics.confusion import ConfusionMatrix
from segkit.metrics.evaluation import Evaluation
from segkit.metrics.held_out import Chosen, HeldOutSearch, gain
from segkit.metrics.labels import argmax_channels
from segkit.metrics.per_image import PerImageConfusion, PerImageScores
from segkit.metrics.scores import Scores

__all__ = [
    "BoundaryIoU",
    "BoundaryScores",
    "CalibrationError",
    "CalibrationScores",
    "Chosen",
    "ConfusionMatrix",
    "Evaluation",
    "HeldOutSearch",
    "Interval",
    "PerImageConfusion",
    "PerImageScores",
    "Scores",
    "argmax_channels",
    "bootstrap_difference",
    "bootstrap_interval",
    "gain",
]
