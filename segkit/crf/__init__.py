"""Dense CRF post-processing."""

from segkit.crf.dense_crf import DenseCRF

__all__ = ["DenseCRF"]
