"""From photographs to label maps and files."""

from segkit.inference.predictor import Prediction, Predictor
from segkit.inference.writers import PredictionWriter

__all__ = ["Prediction", "PredictionWriter", "Predictor"]
