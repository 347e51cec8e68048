"""Data: COCO files and folders of masks as images with label maps, augmentation, loaders, and the drawn demo set.

The names below are imported on first use, so that commands which only read files cost neither torch nor albumentations.
"""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "AUGMENTATIONS": "transforms",
    "CocoSegmentation": "coco",
    "DataError": "images",
    "DataWarning": "findings",
    "FolderSegmentation": "folder",
    "SegmentationDataset": "dataset",
    "assign_folds": "folds",
    "count_classes": "class_counts",
    "create_transform": "transforms",
    "list_images": "images",
    "read_image": "images",
    "signed_distance_maps": "distance_maps",
    "train_loader": "loaders",
    "val_loader": "loaders",
    "write_demo": "demo",
    "write_image": "images",
    "write_mask": "images",
}

__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"segkit.data.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'segkit.data' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return list(__all__)
