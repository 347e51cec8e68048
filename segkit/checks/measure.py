"""How much of each class a data set has, and the pixels that annotations of several classes claim."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from segkit.data.dataset import ImageFiles
from segkit.data.rasterize import OVERLAPS, Annotation, encode, rasterize
from segkit.labels import IGNORE_INDEX

COVERING = 0.995  # an annotation with this share of the pixels covers the whole image


@dataclass
class Measures:
    """How much of C classes N images have.

    Attributes:
        pixels: (N, C) pixels of each class in the label maps.
        annotations: (N, C) annotations that paint something; zeros if masks are files.
        contested: (N,) pixels that annotations of several classes claim.
        repainted: For each other overlap rule, the pixels (N,) that it labels differently than `rule`.
        overlaps: For each pair of labels, the pixels that both claim.
        covering: Image and label of the annotations that cover a whole image.
        rule: The overlap rule of the data set, a key of `segkit.data.rasterize.OVERLAPS`.
    """

    pixels: np.ndarray
    annotations: np.ndarray
    contested: np.ndarray
    repainted: dict[str, np.ndarray]
    overlaps: dict[tuple[int, int], int]
    covering: list[tuple[int, int]]
    rule: str = "smallest"


def measure(data: ImageFiles, indices: Iterable[int] | None = None) -> Measures:
    """Draw every label map and count its classes; no image is read.

    Args:
        data: The set.
        indices: All of its indices, such as under a progress bar.
    """
    count, classes = len(data), len(data.class_names)
    own = getattr(data, "overlap", "smallest")
    rules = () if data.annotations is None else [rule for rule in OVERLAPS if rule != own]
    result = Measures(
        np.zeros((count, classes), dtype=np.int64),
        np.zeros((count, classes), dtype=np.int64),
        np.zeros(count, dtype=np.int64),
        {rule: np.zeros(count, dtype=np.int64) for rule in rules},
        {},
        [],
        own,
    )
    for index in range(count) if indices is None else indices:
        if data.annotations is None:
            mask = data.mask(index)
        else:
            mask = _measure_annotations(result, index, data.annotations[index], data.items[index].size)
        result.pixels[index] = np.bincount(mask.ravel(), minlength=256)[:classes]
    return result


def _measure_annotations(
    result: Measures, index: int, annotations: Sequence[Annotation], size: tuple[int, int]
) -> np.ndarray:
    """Count the annotations and overlaps of an image; return its label map."""
    encoded = [a._replace(shape=encode(a.shape, size)) for a in annotations if a.shape is not None]
    regions: dict[int, list[dict[str, Any]]] = {}
    for annotation in encoded:
        if annotation.label == IGNORE_INDEX:
            continue
        region = {"size": list(size), "counts": annotation.shape}
        area = int(coco_mask.area(region))
        result.annotations[index, annotation.label] += area > 0
        if area >= COVERING * size[0] * size[1]:
            result.covering.append((index, annotation.label))
        regions.setdefault(annotation.label, []).append(region)
    shared = _shared_regions(regions)
    for pair, region in shared:
        result.overlaps[pair] = result.overlaps.get(pair, 0) + int(coco_mask.area(region))
    if shared:
        result.contested[index] = coco_mask.area(coco_mask.merge([region for _, region in shared]))
    mask = rasterize(encoded, size, overlap=result.rule)
    for rule, repainted in result.repainted.items():
        if result.contested[index]:
            repainted[index] = np.count_nonzero(rasterize(encoded, size, overlap=rule) != mask)
    return mask


def contested_pixels(annotations: Sequence[Annotation], size: tuple[int, int]) -> np.ndarray:
    """Return which pixels annotations of several classes claim, (H, W) bool."""
    regions: dict[int, list[dict[str, Any]]] = {}
    for annotation in annotations:
        if annotation.shape is not None and annotation.label != IGNORE_INDEX:
            region = {"size": list(size), "counts": encode(annotation.shape, size)}
            regions.setdefault(annotation.label, []).append(region)
    shared = [Annotation(None, 1, False, region["counts"]) for _, region in _shared_regions(regions)]
    return rasterize(shared, size).astype(bool)


def _shared_regions(regions: Mapping[int, list[dict[str, Any]]]) -> list[tuple[tuple[int, int], dict[str, Any]]]:
    """Return the pixels that both classes of a pair claim, as RLE, for each pair that shares any."""
    claimed = {label: coco_mask.merge(of_class) for label, of_class in sorted(regions.items())}
    pairs = ((pair, [claimed[label] for label in pair]) for pair in combinations(claimed, 2))
    shared = [(pair, coco_mask.merge(both, intersect=True)) for pair, both in pairs]
    return [(pair, region) for pair, region in shared if coco_mask.area(region)]
