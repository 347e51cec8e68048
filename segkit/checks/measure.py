"""measure: what a set of images holds of each class, and where its annotations contradict one another."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple, Protocol

import numpy as np
from pycocotools import mask as coco_mask

from segkit.data.findings import Finding
from segkit.data.images import AS_USUAL, Reading
from segkit.data.rasterize import OVERLAPS, Annotation, encode, rasterize
from segkit.labels import IGNORE_INDEX

COVERING = 0.995  # share of the pixels from which an annotation covers the whole image
Progress = Callable[[Sequence], Iterable]


class SourceItem(Protocol):
    """An image of any source; the path, its name and (H, W)."""

    path: Any
    file_name: str
    size: tuple[int, int]


class CheckedSet(NamedTuple):
    """A set of images to be checked.

    Attributes:
        name: What tables call it.
        class_names: In label order.
        items: The images that can be used.
        annotations: Of each image; None for masks that are files.
        mask: Gives the labels (H, W) uint8 of an image by its index.
        findings: What reading it has found.
        reading: How its images are read.
    """

    name: str
    class_names: Sequence[str]
    items: Sequence[SourceItem]
    annotations: Sequence[Sequence[Annotation]] | None
    mask: Callable[[int], np.ndarray]
    findings: Sequence[Finding] = ()
    reading: Reading = AS_USUAL


@dataclass
class Measures:
    """What N images hold of C classes.

    Attributes:
        pixels: (N, C) pixels of each class in the label maps.
        annotations: (N, C) annotations that paint something; zeros for masks that are files.
        contested: (N,) pixels that annotations of several classes claim.
        repainted: By rule of overlap, the pixels (N,) that it labels otherwise than `smallest` does.
        overlaps: By pair of labels, the pixels that both claim.
        covering: Image and label of the annotations that cover a whole image.
    """

    pixels: np.ndarray
    annotations: np.ndarray
    contested: np.ndarray
    repainted: dict[str, np.ndarray]
    overlaps: dict[tuple[int, int], int]
    covering: list[tuple[int, int]]


def measure(data: CheckedSet, progress: Progress = iter) -> Measures:
    """Paints every label map and counts; no image is read.

    Args:
        data: The set.
        progress: Wraps what is gone through, such as tqdm.
    """
    count, classes = len(data.items), len(data.class_names)
    rules = () if data.annotations is None else [rule for rule in OVERLAPS if rule != "smallest"]
    result = Measures(
        np.zeros((count, classes), dtype=np.int64),
        np.zeros((count, classes), dtype=np.int64),
        np.zeros(count, dtype=np.int64),
        {rule: np.zeros(count, dtype=np.int64) for rule in rules},
        {},
        [],
    )
    for index in progress(range(count)):
        if data.annotations is None:
            mask = data.mask(index)
        else:
            mask = _measure_annotations(result, index, data.annotations[index], data.items[index].size)
        result.pixels[index] = np.bincount(mask.ravel(), minlength=256)[:classes]
    return result


def _measure_annotations(
    result: Measures, index: int, annotations: Sequence[Annotation], size: tuple[int, int]
) -> np.ndarray:
    """Counts annotations and overlaps of an image; gives its label map."""
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
    result.contested[index] = _count_overlaps(result.overlaps, regions)
    mask = rasterize(encoded, size)
    for rule, repainted in result.repainted.items():
        if result.contested[index]:
            repainted[index] = np.count_nonzero(rasterize(encoded, size, overlap=rule) != mask)
    return mask


def contested_pixels(annotations: Sequence[Annotation], size: tuple[int, int]) -> np.ndarray:
    """Where annotations of several classes claim the same pixel, (H, W) bool."""
    regions: dict[int, list[dict[str, Any]]] = {}
    for annotation in annotations:
        if annotation.shape is not None and annotation.label != IGNORE_INDEX:
            region = {"size": list(size), "counts": encode(annotation.shape, size)}
            regions.setdefault(annotation.label, []).append(region)
    shared = [Annotation(None, 1, False, region["counts"]) for _, region in _shared_regions(regions)]
    return rasterize(shared, size).astype(bool)


def _count_overlaps(overlaps: dict[tuple[int, int], int], regions: Mapping[int, list[dict[str, Any]]]) -> int:
    """Adds what each two classes both claim; gives the pixels that any two claim."""
    shared = _shared_regions(regions)
    for pair, region in shared:
        overlaps[pair] = overlaps.get(pair, 0) + int(coco_mask.area(region))
    return int(coco_mask.area(coco_mask.merge([region for _, region in shared]))) if shared else 0


def _shared_regions(regions: Mapping[int, list[dict[str, Any]]]) -> list[tuple[tuple[int, int], dict[str, Any]]]:
    """What each two classes both claim, as RLE, of those that share anything."""
    claimed = {label: coco_mask.merge(of_class) for label, of_class in sorted(regions.items())}
    pairs = ((pair, [claimed[label] for label in pair]) for pair in combinations(claimed, 2))
    shared = [(pair, coco_mask.merge(both, intersect=True)) for pair, both in pairs]
    return [(pair, region) for pair, region in shared if coco_mask.area(region)]
