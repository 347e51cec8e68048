"""Label maps as a COCO JSON, for other tools and for training on pseudo labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from segkit.errors import DataError, UsageError
from segkit.files import write_json
from segkit.inference.prediction import Prediction
from segkit.labels import BACKGROUND

Record = dict[str, Any]


class PseudoLabels:
    """Select the pixels of a prediction that are sure enough to train on.

    A pixel is sure if the probability of its class reaches the threshold of the class. The other pixels become one
    region with `"ignore": 1`, which `CocoSegmentation` paints 255.

    Args:
        class_names: The names of the classes, background first.
        threshold: Lowest probability of a sure pixel.
        class_thresholds: Thresholds of single classes, by name.
        min_share: Least share of sure pixels of an image that is used.

    Raises:
        UsageError: A class does not exist, or a threshold is not in 0..1.
        DataError: The first class is not background, see `check_background`.
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
        """Return the annotations of an image, without ids; None if too few of its pixels are sure."""
        best = np.take_along_axis(prediction.probs, prediction.mask[None].astype(np.int64), 0)[0]
        sure = best >= self.thresholds[prediction.mask]
        if sure.mean() < self.min_share:
            return None
        found = annotations_of(np.where(sure, prediction.mask, 0))
        if not sure.all():
            labels = prediction.mask[~sure]
            likeliest = int(np.bincount(labels, minlength=2)[1:].argmax()) + 1
            # Tools that do not know "ignore" see a crowd of the most frequent class.
            found.append({"category_id": likeliest, **_region(~sure), "iscrowd": 1, "ignore": 1})
        return found


def annotations_of(mask: np.ndarray) -> list[Record]:
    """Return one annotation, still without id, per class of a label map (H, W), except background."""
    labels = [int(label) for label in np.unique(mask) if label]
    return [{"category_id": label, **_region(mask == label), "iscrowd": 0} for label in labels]


def image_record(name: Path, size: tuple[int, int], identifier: int | str) -> Record:
    """Return the record of an image of size (H, W)."""
    return {"id": identifier, "file_name": name.as_posix(), "height": size[0], "width": size[1]}


def write_coco(file: Path, class_names: Sequence[str], results: Sequence[tuple[Record, Sequence[Record]]]) -> None:
    """Write images with their annotations; the category of label i has the id i and the name of class i.

    Args:
        file: The JSON file.
        class_names: The names of the classes, background first.
        results: For each image its record, see `image_record`, and its annotations, see `annotations_of`.
    """
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
    write_json(file, content)


def check_background(class_names: Sequence[str]) -> None:
    """Raise DataError unless label 0 is background, for which a COCO JSON has no category."""
    if class_names[0] != BACKGROUND:
        raise DataError(
            f"a COCO JSON has no category for the first class of the model, {class_names[0]!r}; it must be background"
        )


def _region(region: np.ndarray) -> Record:
    encoded = coco_mask.encode(np.asfortranarray(region, dtype=np.uint8))
    return {
        "segmentation": {"size": [int(n) for n in encoded["size"]], "counts": encoded["counts"].decode()},
        "area": int(coco_mask.area(encoded)),
        "bbox": [float(x) for x in coco_mask.toBbox(encoded)],
    }
