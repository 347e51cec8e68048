"""Label maps as a COCO JSON that other tools, and a training run, take as it is."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from segkit.errors import DataError, UsageError
from segkit.inference.predictor import Prediction
from segkit.inference.source import SourceImage

Record = dict[str, Any]


class PseudoLabels:
    """What of a prediction is sure enough to be learnt.

    A pixel is sure where the probability of its class reaches the class's threshold. The others become
    one region with `"ignore": 1`, which `CocoSegmentation` paints 255.

    Args:
        class_names: In label order, background first.
        threshold: Lowest probability of a sure pixel.
        class_thresholds: Of single classes, by name.
        min_share: Least share of sure pixels of an image that is taken at all.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        threshold: float = 0.8,
        class_thresholds: Mapping[str, float] | None = None,
        min_share: float = 0.5,
    ) -> None:
        check_background(class_names)
        of_class = dict.fromkeys(class_names, threshold) | dict(class_thresholds or {})
        for name, value in of_class.items():
            if name not in class_names:
                raise UsageError(
                    f"there is no class {name!r} for a threshold, the classes are {', '.join(class_names)}"
                )
            if not 0 <= value <= 1:
                raise UsageError(f"the threshold of class {name!r} must be in 0..1, got {value}")
        self.thresholds = np.array([of_class[name] for name in class_names], dtype=np.float32)
        self.min_share = min_share

    def __call__(self, prediction: Prediction) -> list[Record] | None:
        """The annotations of an image, without ids; None where too little of it is sure."""
        best = np.take_along_axis(prediction.probs, prediction.mask[None].astype(np.int64), 0)[0]
        sure = best >= self.thresholds[prediction.mask]
        if sure.mean() < self.min_share:
            return None
        found = annotations_of(np.where(sure, prediction.mask, 0))
        if not sure.all():
            labels = prediction.mask[~sure]
            likeliest = (
                int(np.bincount(labels, minlength=2)[1:].argmax()) + 1
            )  # tools that know no `ignore` see a crowd
            found.append({"category_id": likeliest, **_region(~sure), "iscrowd": 1, "ignore": 1})
        return found


def annotations_of(mask: np.ndarray) -> list[Record]:
    """One annotation for each class of a label map (H, W) but background, without ids; category ids are labels."""
    labels = [int(label) for label in np.unique(mask) if label]
    return [{"category_id": label, **_region(mask == label), "iscrowd": 0} for label in labels]


def image_record(source: SourceImage, size: tuple[int, int], number: int) -> Record:
    """The record of an image, with its own id where it has one and `number` otherwise."""
    identifier = number if source.id is None else source.id
    return {"id": identifier, "file_name": source.name.as_posix(), "height": size[0], "width": size[1]}


def write_coco(file: Path, class_names: Sequence[str], results: Sequence[tuple[Record, Sequence[Record]]]) -> None:
    """Writes images with their annotations; the category of label i has the id i and the name of class i."""
    check_background(class_names)
    annotations = [
        {"id": number, "image_id": image["id"], **annotation}
        for number, (image, annotation) in enumerate(
            ((image, annotation) for image, found in results for annotation in found), start=1
        )
    ]
    content = {
        "images": [image for image, _ in results],
        "categories": [{"id": label, "name": name} for label, name in enumerate(class_names) if label],
        "annotations": annotations,
    }
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    os.replace(temporary, file)


def check_background(class_names: Sequence[str]) -> None:
    """A COCO JSON has no background category: label 0 must be it."""
    if class_names[0] != "background":
        raise DataError(f"a COCO JSON cannot hold the model's class 0, {class_names[0]!r}, which must be background")


def _region(region: np.ndarray) -> Record:
    encoded = coco_mask.encode(np.asfortranarray(region, dtype=np.uint8))
    return {
        "segmentation": {"size": [int(n) for n in encoded["size"]], "counts": encoded["counts"].decode()},
        "area": int(coco_mask.area(encoded)),
        "bbox": [float(x) for x in coco_mask.toBbox(encoded)],
    }
