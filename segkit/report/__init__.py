"""The pictures of a run, and the page that shows them all."""

from segkit.report.gallery import Gallery, gallery_picture
from segkit.report.page import Picture, RunPage, render
from segkit.report.pictures import (
    batch_picture,
    label_picture,
    save_class_iou,
    save_confusion,
    save_curves,
)
from segkit.report.run import RunFacts, RunReport, RunResults, write_confusion

__all__ = [
    "Gallery",
    "Picture",
    "RunFacts",
    "RunPage",
    "RunReport",
    "RunResults",
    "batch_picture",
    "gallery_picture",
    "label_picture",
    "render",
    "save_class_iou",
    "save_confusion",
    "save_curves",
    "write_confusion",
]
