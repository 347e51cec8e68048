"""Data: COCO files and folders of masks as images with label maps, augmentation, loaders, and the drawn demo set."""

from segkit.data.coco import CocoSegmentation
from segkit.data.dataset import SegmentationDataset
from segkit.data.demo import write_demo
from segkit.data.distance_maps import signed_distance_maps
from segkit.data.folder import FolderSegmentation
from segkit.data.images import DataError, list_images, read_image, write_image, write_mask
from segkit.data.loaders import train_loader, val_loader
from segkit.data.transforms import AUGMENTATIONS, create_transform

__all__ = [
    "AUGMENTATIONS",
    "CocoSegmentation",
    "DataError",
    "FolderSegmentation",
    "SegmentationDataset",
    "create_transform",
    "list_images",
    "read_image",
    "signed_distance_maps",
    "train_loader",
    "val_loader",
    "write_demo",
    "write_image",
    "write_mask",
]
