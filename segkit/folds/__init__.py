"""Cross-validation: what each image holds, k folds with even shares of every class, and their COCO files."""

from segkit.folds.assign import assign_folds, fold_table, one_by_one_folds, random_folds, unevenness
from segkit.folds.counts import ClassCounts, count_classes, count_labels
from segkit.folds.files import FoldSource, read_fold_source, write_fold_files
from segkit.folds.split import Folds, add_train_only, count_images, image_paths

__all__ = [
    "ClassCounts",
    "FoldSource",
    "Folds",
    "add_train_only",
    "assign_folds",
    "count_classes",
    "count_images",
    "count_labels",
    "fold_table",
    "image_paths",
    "one_by_one_folds",
    "random_folds",
    "read_fold_source",
    "unevenness",
    "write_fold_files",
]
