"""Cityscapes: `leftImg8bit/SPLIT/CITY/*_leftImg8bit.png` and `gtFine/SPLIT/CITY/*_gtFine_labelIds.png`.

The 19 classes that are trained and scored are labels 0 to 18, in the order of the authors' train ids; all other
regions are ignored. The masks of its test images are empty, so there is no split test.

CVAT and Datumaro write their own classes in this layout: line i of `label_colors.txt`, `red green blue name`, is the
class of value i. The authors' files have no such list.

Source: Marius Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding" (CVPR 2016), table of
labels in mcordts/cityscapesScripts.
"""

from functools import partial
from pathlib import Path

from segkit.data.findings import Finding
from segkit.data.formats.pairs import by_stem, match
from segkit.data.formats.records import LabelFiles, LabelSource, MaskFiles
from segkit.errors import DataError
from segkit.labels import IGNORE_INDEX

CLASSES = {  # by the value in labelIds, in the order of the train ids
    **{7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light"},
    **{20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car"},
    **{27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle"},
}
IDS = range(34)
LIST = "label_colors.txt"
LABEL_IDS, TRAIN_IDS = "_gtFine_labelIds", "_gtFine_labelTrainIds"


def recognise(path: Path) -> str | None:
    """Return what shows that `path` has the layout of Cityscapes; None if it has not."""
    is_there = (path / "leftImg8bit").is_dir() and (path / "gtFine").is_dir()
    return "folders leftImg8bit and gtFine" if is_there else None


def read(path: Path) -> LabelSource:
    """Return the images of Cityscapes by split.

    Raises:
        DataError: There are no such folders.
    """
    splits = [split for split in ("train", "val") if (path / "gtFine" / split).is_dir()]
    if not splits:
        raise DataError(f"{path} has no masks of Cityscapes, expected at {path / 'gtFine' / 'train'}")
    readers = {split: partial(_read_split, path, split) for split in splits}
    return LabelSource("cityscapes", path, "folders leftImg8bit and gtFine", readers)


def _read_split(path: Path, split: str) -> MaskFiles:
    images, masks = path / "leftImg8bit" / split, path / "gtFine" / split
    if (path / LIST).is_file():
        found: list[Finding] = []
        pairs = match(by_stem(images, "_leftImg8bit"), by_stem(masks, LABEL_IDS), images, found, all_labelled=True)
        names = _listed_classes(path / LIST)
        return MaskFiles(masks, pairs, names, values={i: i for i in range(len(names))}, findings=found)
    labels = {value: label for label, value in enumerate(CLASSES)}
    values = {value: labels.get(value, IGNORE_INDEX) for value in IDS}
    of_masks = by_stem(masks, LABEL_IDS)
    if not of_masks:
        of_masks = by_stem(masks, TRAIN_IDS)
        values = {label: label for label in (*labels.values(), IGNORE_INDEX)}
    found = []
    pairs = match(by_stem(images, "_leftImg8bit"), of_masks, images, found, all_labelled=True)
    return MaskFiles(masks, pairs, list(CLASSES.values()), values=values, findings=found)


def _listed_classes(file: Path) -> list[str]:
    names = []
    for line in LabelFiles("").text(file).splitlines():
        words = line.split()
        if len(words) > 3 and all(word.isdecimal() for word in words[:3]):
            words = words[3:]
        if words and not words[0].startswith("#"):
            names.append(" ".join(words))
    if len(set(names)) < len(names) or len(names) < 2:
        raise DataError(f"{file} must name two or more different classes, one in each line, got {', '.join(names)}")
    return names
