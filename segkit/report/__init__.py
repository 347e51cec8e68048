"""The pictures of a run, and the page that shows them all."""

from segkit.files import write_whole
from segkit.report.page import Picture, RunPage, render
from segkit.report.pictures import (
    batch_picture,
    label_picture,
    prediction_picture,
    save_class_iou,
    save_confusion,
    save_curves,
)

__all__ = [
    "Picture",
    "RunPage",
    "batch_picture",
    "label_picture",
    "prediction_picture",
    "render",
    "save_class_iou",
    "save_confusion",
    "save_curves",
    "write_whole",
]
