"""Dense CRF: refine predicted probabilities by the colours of the image."""

from segkit.crf.dense_crf import DenseCRF
from segkit.crf.presets import PRESETS, CRFParameters

__all__ = ["PRESETS", "CRFParameters", "DenseCRF"]
