"""COCO files and folders of masks as images with label maps, augmentation and loaders.

The names below are imported on first use: commands that only read files need neither torch nor albumentations.
"""

from segkit._lazy import lazy_names

_PUBLIC = {
    "AUGMENTATIONS": "segkit.data.transforms",
    "Augmentation": "segkit.data.transforms",
    "CocoSegmentation": "segkit.data.coco",
    "DataError": "segkit.errors",
    "DataWarning": "segkit.errors",
    "FolderSegmentation": "segkit.data.folder",
    "SegmentationDataset": "segkit.data.dataset",
    # assign_folds, count_classes and write_demo have moved to other packages; they stay public here.
    "assign_folds": "segkit.folds",
    "count_classes": "segkit.folds",
    "find_source": "segkit.data.formats",
    "create_transform": "segkit.data.transforms",
    "list_images": "segkit.data.images",
    "read_image": "segkit.data.images",
    "signed_distance_maps": "segkit.data.rasterize",
    "train_loader": "segkit.data.loaders",
    "training_scale": "segkit.data.transforms",
    "val_loader": "segkit.data.loaders",
    "write_demo": "segkit.demo",
    "write_image": "segkit.data.images",
    "write_mask": "segkit.data.images",
}

__all__ = [*_PUBLIC]
__getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
