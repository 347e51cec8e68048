"""Dense CRF post-processing."""

from segkit.crf.dense_crf import DenseCRF
from segkit.crf.presets import PRESETS, CRFParameters

__all__ = ["PRESETS", "CRFParameters", "DenseCRF"]
