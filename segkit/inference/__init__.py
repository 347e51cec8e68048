"""From photographs to label maps and files."""

from segkit.inference.coco_results import PseudoLabels, write_coco
from segkit.inference.labelled import Labelled, segment_dataset
from segkit.inference.member_probs import MemberProbs, sample_pixels
from segkit.inference.predictor import Prediction, Predictor
from segkit.inference.source import SourceImage, open_source
from segkit.inference.stream import Clock, Segmented, segment
from segkit.inference.submission import check_sample, write_submission
from segkit.inference.writers import PredictionWriter

__all__ = [
    "Clock",
    "Labelled",
    "MemberProbs",
    "Prediction",
    "PredictionWriter",
    "Predictor",
    "PseudoLabels",
    "Segmented",
    "SourceImage",
    "check_sample",
    "open_source",
    "sample_pixels",
    "segment",
    "segment_dataset",
    "write_coco",
    "write_submission",
]
