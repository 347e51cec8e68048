"""From photographs to label maps and files: Predictor, streams of images, writers."""

from segkit.inference.batch_size import BatchSize
from segkit.inference.coco_results import PseudoLabels, write_coco
from segkit.inference.member_probs import MemberProbs, sample_pixels
from segkit.inference.prediction import Prediction
from segkit.inference.predictor import Predictor, predict_photo
from segkit.inference.source import SourceImage, open_source
from segkit.inference.stream import Clock, Labelled, Segmented, segment, segment_dataset
from segkit.inference.submission import check_sample, write_submission
from segkit.inference.writers import PredictionWriter

__all__ = [
    "BatchSize",
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
    "predict_photo",
    "sample_pixels",
    "segment",
    "segment_dataset",
    "write_coco",
    "write_submission",
]
