"""ZeroWaste-f: `train|val|test` with the folders `data` and `sem_seg`, whose masks have the class as value.

Source: Dina Bashkirova et al., "ZeroWaste Dataset: Towards Deformable Object Segmentation in Cluttered Scenes" (CVPR
2022), dbash/zerowaste. Its masks have the highest category id where objects overlap.
"""

from functools import partial
from pathlib import Path

from segkit.data.formats.pairs import by_stem, match
from segkit.data.formats.records import SPLITS, WHOLE, LabelSource, MaskFiles
from segkit.errors import DataError

CLASSES = ("background", "rigid_plastic", "cardboard", "metal", "soft_plastic")


def recognise(path: Path) -> str | None:
    """Return what shows that `path` has the layout of ZeroWaste; None if it has not."""
    return "folders data and sem_seg" if _folders(path) else None


def read(path: Path) -> LabelSource:
    """Return the images of ZeroWaste by split.

    Raises:
        DataError: There are no such folders.
    """
    folders = _folders(path)
    if not folders:
        raise DataError(f"{path} has no folders of ZeroWaste, expected {path / 'train' / 'sem_seg'} and train/data")
    readers = {split: partial(_read_split, folder) for split, folder in folders.items()}
    return LabelSource("zerowaste", path, "folders data and sem_seg", readers)


def _folders(path: Path) -> dict[str, Path]:
    if _has_masks(path):
        return {WHOLE: path}
    for root in (path, path / "zerowaste-f", path / "splits_final_deblurred"):
        found = {split: root / split for split in SPLITS if _has_masks(root / split)}
        if found:
            return found
    return {}


def _has_masks(folder: Path) -> bool:
    return (folder / "data").is_dir() and (folder / "sem_seg").is_dir()


def _read_split(folder: Path) -> MaskFiles:
    found: list = []
    # A few photographs of the published set have no mask; these are not used.
    images, masks = by_stem(folder / "data"), by_stem(folder / "sem_seg")
    pairs = match(images, masks, folder / "data", found, all_labelled=False)
    return MaskFiles(folder, pairs, CLASSES, values={label: label for label in range(len(CLASSES))}, findings=found)
