"""Label maps as a COCO JSON, for other tools and for training on pseudo labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from segkit.data.coco_file import id_value
from segkit.errors import UsageError
from segkit.files import write_json
from segkit.inference.prediction import Prediction
from segkit.labels import background_of, foreground_of

Record = dict[str, Any]


class PseudoLabels:
    """Select the pixels of a prediction that are sure enough to train on.

    A pixel is sure if the probability of its class reaches the threshold of the class. The other pixels become one
    region with `"ignore": 1`, which `CocoSegmentation` paints 255.

    Args:
        class_names: The names of the labels, in their order.
        threshold: Lowest probability of a sure pixel.
        class_thresholds: Thresholds of single classes, by name.
        min_share: Least share of sure pixels of an image that is used.

    Raises:
        UsageError: A class does not exist, or a threshold is not in 0..1.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        threshold: float = 0.8,
        class_thresholds: Mapping[str, float] | None = None,
        min_share: float = 0.5,
    ) -> None:
        of_class = dict.fromkeys(class_names, threshold) | dict(class_thresholds or {})
        for name, value in of_class.items():
            if name not in class_names:
                raise UsageError(
                    f"there is no class {name!r} for a threshold, the classes are {', '.join(class_names)}"
                )
            if not 0 <= value <= 1:
                raise UsageError(f"the threshold of class {name!r} must be in 0..1, got {value}")
        self.thresholds = np.array([of_class[name] for name in class_names], dtype=np.float32)
        self.background = background_of(class_names)
        self.min_share = min_share

    def __call__(self, prediction: Prediction) -> list[Record] | None:
        """Return the annotations of an image, see `annotations_of`; None if too few of its pixels are sure."""
        best = np.take_along_axis(prediction.probs, prediction.mask[None].astype(np.int64), 0)[0]
        sure = best >= self.thresholds[prediction.mask]
        if sure.mean() < self.min_share:
            return None
        found = annotations_of(prediction.mask, self.background, sure)
        if not sure.all():
            counts = np.bincount(prediction.mask[~sure], minlength=len(self.thresholds))
            if self.background is not None:
                counts[self.background] = -1
            # Tools that do not know "ignore" see a crowd of the most frequent class.
            found.append({"category_id": int(counts.argmax()), **_region(~sure), "iscrowd": 1, "ignore": 1})
        return found


def annotations_of(mask: np.ndarray, background: int | None = 0, where: np.ndarray | None = None) -> list[Record]:
    """Return one annotation per class of a label map, still without id; `category_id` is the label.

    Args:
        mask: (H, W) labels.
        background: The label that has no annotation, None if each has one.
        where: (H, W) bool, the pixels that annotations cover. By default all.
    """
    covered = np.ones(mask.shape, dtype=bool) if where is None else where
    labels = [int(label) for label in np.unique(mask[covered]) if label != background]
    return [{"category_id": label, **_region((mask == label) & covered), "iscrowd": 0} for label in labels]


def image_record(name: Path, size: tuple[int, int], identifier: int | str) -> Record:
    """Return the record of an image of size (H, W)."""
    return {"id": identifier, "file_name": name.as_posix(), "height": size[0], "width": size[1]}


def write_coco(
    file: Path,
    class_names: Sequence[str],
    results: Sequence[tuple[Record, Sequence[Record]]],
    *known_ids: Mapping[str, int | str],
) -> None:
    """Write images with their annotations as a COCO JSON. Background has no category.

    Args:
        file: The JSON file.
        class_names: The names of the labels, in their order.
        results: For each image its record, see `image_record`, and its annotations, see `annotations_of`.
        *known_ids: Category ids by name, such as `Predictor.category_ids`; see `category_ids`.
    """
    ids = category_ids(class_names, *known_ids)
    annotations = [
        {"id": number, "image_id": image["id"], **annotation, "category_id": ids[annotation["category_id"]]}
        for number, (image, annotation) in enumerate(
            ((image, annotation) for image, found in results for annotation in found), start=1
        )
    ]
    content = {
        "images": [image for image, _ in results],
        "categories": [{"id": ids[label], "name": class_names[label]} for label in foreground_of(class_names)],
        "annotations": annotations,
    }
    write_json(file, content)


def category_ids(class_names: Sequence[str], *known: Mapping[str, int | str]) -> dict[int, int | str]:
    """Return the category id of each label except background: the known id, or the next number above all known ids.

    Args:
        class_names: The names of the labels, in their order.
        *known: Ids by name; earlier mappings win. No id is used for two names, even if one of them is not a label, such
            as another spelling of background.
    """
    ids: dict[int, int | str] = {}
    taken: set[int | str] = set()
    for mapping in known:
        for label in foreground_of(class_names):
            found = mapping.get(class_names[label])
            if found is not None and label not in ids and found not in taken:
                ids[label] = found
        taken.update(mapping.values())
    following = max([0, *(value for value in map(id_value, taken) if isinstance(value, int))]) + 1
    for label in foreground_of(class_names):
        if label not in ids:
            ids[label], following = following, following + 1
    return ids


def _region(region: np.ndarray) -> Record:
    encoded = coco_mask.encode(np.asfortranarray(region, dtype=np.uint8))
    return {
        "segmentation": {"size": [int(n) for n in encoded["size"]], "counts": encoded["counts"].decode()},
        "area": int(coco_mask.area(encoded)),
        "bbox": [float(x) for x in coco_mask.toBbox(encoded)],
    }
